"""32 clients in a process of their own: for every line read (turns and a seed) each asks so many times in turn, and the
tokens drawn are told.

They write and read HTTP plainly: a client library's work on the same cores would be taken for the server's.
"""

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

CLIENTS, TOKENS = 32, 48


def prompt(number: int) -> str:
    return f"How do I bake bread number {number}?" + " And then walk the dog?" * (number % 3)


async def connect(address: str, models: list[str]) -> Callable[[int, int], Awaitable[int]]:
    """What asks question `number` with a seed, on a connection that is kept, and gives the number of tokens drawn."""
    place = urlsplit(address)
    reader, writer = await asyncio.open_connection(place.hostname, place.port)
    head = f"POST {place.path}/chat/completions HTTP/1.1\r\nHost: {place.netloc}\r\nContent-Type: application/json\r\n"

    async def ask(number: int, seed: int) -> int:
        body = {"model": models[number % len(models)], "seed": seed, "max_tokens": TOKENS, "n": 2}
        raw = json.dumps(body | {"messages": [{"role": "user", "content": prompt(number)}]})
        writer.write(f"{head}Content-Length: {len(raw)}\r\n\r\n{raw}".encode())
        status, *fields = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        [size] = [int(field.split(":")[1]) for field in fields if field.lower().startswith("content-length:")]
        found = await reader.readexactly(size)
        assert " 200 " in status, found
        return json.loads(found)["usage"]["completion_tokens"]

    return ask


async def main(address: str, models: list[str]) -> None:
    asking = [await connect(address, models) for _ in range(CLIENTS)]

    async def client(number: int, num_decode_batches: int, seed: int) -> int:
        return sum([await asking[number](number + turn * CLIENTS, seed) for turn in range(num_decode_batches)])

    while line := await asyncio.to_thread(sys.stdin.readline):
        num_decode_batches, seed = map(int, line.split())
        print(sum(await asyncio.gather(*(client(i, num_decode_batches, seed) for i in range(CLIENTS)))), flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2:]))
