"""32 clients in a process of their own: for every line read (a seed) each asks once, and the tokens drawn are told."""

import asyncio
import sys

import httpx

CLIENTS, TOKENS = 32, 48


def prompt(number: int) -> str:
    return f"How do I bake bread number {number}?" + " And then walk the dog?" * (number % 3)


async def main(address: str, models: list[str]) -> None:
    async with httpx.AsyncClient(timeout=600, limits=httpx.Limits(max_connections=CLIENTS)) as client:

        async def one(number: int, seed: int) -> int:
            body = {"model": models[number % len(models)], "seed": seed, "max_tokens": TOKENS, "n": 2}
            body["messages"] = [{"role": "user", "content": prompt(number)}]
            found = await client.post(f"{address}/chat/completions", json=body)
            return found.raise_for_status().json()["usage"]["completion_tokens"]

        while line := await asyncio.to_thread(sys.stdin.readline):
            print(sum(await asyncio.gather(*(one(i, int(line)) for i in range(CLIENTS)))), flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2:]))
