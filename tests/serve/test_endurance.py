"""5,000 requests of clients that leave at random: memory stays level and no slot is lost. Prints its figures: -s."""

import asyncio
import pathlib
import random
import resource
import time

import httpx
import pytest
from serve.conftest import serving

REQUESTS, CLIENTS = 5000, 24


def resident_mb():
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


async def one(client, address, chance, number):
    """One request, which its client may leave at any moment; what became of it."""
    asked = {
        "model": "base",
        "messages": [{"role": "user", "content": f"Hi {number % 50}"}],
        "n": chance.choice((1, 2, 4)),
    }
    asked |= {"max_tokens": chance.choice((2, 4, 8)), "seed": number, "stream": chance.random() < 0.5}
    leaves_after = chance.choice((None, None, 0.0, 0.005, 0.02, 0.1))
    try:
        async with asyncio.timeout(leaves_after):
            found = await client.post(f"{address}/chat/completions", json=asked)
            return found.status_code
    except TimeoutError:
        return "left"


async def many(address, count, seed):
    chance, found, numbers = random.Random(seed), {}, iter(range(count))

    async def ask():
        async with httpx.AsyncClient(timeout=120) as client:
            for number in numbers:
                result = await one(client, address, chance, number)
                found[result] = found.get(result, 0) + 1

    await asyncio.gather(*(ask() for _ in range(CLIENTS)))
    return found


@pytest.mark.long
def test_5000_requests_of_which_many_are_left(engine):
    with serving(engine, queue=200, n=8) as address:
        health = address.replace("/v1", "/health")
        asyncio.run(many(address, REQUESTS // 5, 0))
        before, began, until = resident_mb(), time.monotonic(), time.monotonic() + 400
        found, part = {}, 0
        while sum(found.values()) < REQUESTS and time.monotonic() < until:
            part += 1
            for result, count in asyncio.run(many(address, REQUESTS // 10, part)).items():
                found[result] = found.get(result, 0) + count
        after, seconds = resident_mb(), time.monotonic() - began
        while (answers := httpx.get(health).json()["answers"]) and time.monotonic() < until + 60:
            time.sleep(0.1)
        print(f"{found}, {seconds:.0f} s, {before:.0f} MB before, {after:.0f} MB after, {answers} answers left")
        assert sum(found.values()) == REQUESTS and set(found) == {200, "left"} and found["left"] > REQUESTS // 10
        assert answers == 0 and after - before < 50
        # Every slot still decodes: as many answers as there are slots come in one go.
        asked = {"model": "base", "messages": [{"role": "user", "content": "Hi"}], "n": engine.slots, "max_tokens": 4}
        assert len(httpx.post(f"{address}/chat/completions", json=asked, timeout=60).json()["choices"]) == engine.slots
