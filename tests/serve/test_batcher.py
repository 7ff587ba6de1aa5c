"""Requests that come together, or follow on answers that ended, are drawn together."""

import asyncio
import threading
import types

import pytest

from em_jax.sample.batch import SampleRequest, TokenChunk
from em_jax.serve.batcher import Batcher
from em_jax.serve.requests import Refusal


class ScriptedEngine:
    """Ends every answer at the step after the one that it began with; tells of each step how many it began."""

    def __init__(self, slots):
        self.slots, self.began = slots, []

    def scheduler(self):
        waiting, drawing = [], []

        def collect():
            ended, drawing[:] = list(drawing), []
            return [TokenChunk(request, [1], [0.0], [], "length") for request in ended]

        def dispatch():
            drawing.extend(waiting[: self.slots])
            del waiting[: self.slots]
            self.began.append(len(drawing))
            scheduler.busy = bool(waiting or drawing)

        scheduler = types.SimpleNamespace(busy=False, collect=collect, dispatch=dispatch)
        scheduler.submit = waiting.extend
        scheduler.cancel = lambda gone: waiting.__setitem__(slice(None), [t for t in waiting if t[:2] not in gone])
        return scheduler

    def sample_requests(self, number, ids, samples, adapter):
        return [SampleRequest(number, sample, ids, None) for sample in samples]


async def ask(batcher, num_decode_batches, late=0.0):
    await asyncio.sleep(late)
    for _ in range(num_decode_batches):
        answers = batcher.ask([1], 2, "base")
        found = [chunk.request.sample async for chunk in answers.chunks()]
        answers.close()
        assert sorted(found) == [0, 1]


def drawn(slots, *asking):
    engine = ScriptedEngine(slots)

    async def run():
        batcher = Batcher(engine, 100)
        batcher.start()
        await asyncio.gather(*(ask(batcher, *each) for each in asking))
        await batcher.stop()

    asyncio.run(run())
    return [count for count in engine.began if count]


def test_requests_that_come_together_begin_together(monkeypatch):
    monkeypatch.setattr("em_jax.serve.batcher.QUIET", 0.3)
    monkeypatch.setattr("em_jax.serve.batcher.GATHERING", 3.0)
    assert drawn(64, *[(1, 0.01 * number) for number in range(8)]) == [16]
    # Those who ask again do so together.
    assert drawn(64, *[(3, 0.0)] * 4) == [8, 8, 8]


def test_who_fills_all_the_slots_waits_for_nobody(monkeypatch):
    for name in ("QUIET", "GATHERING"):
        monkeypatch.setattr(f"em_jax.serve.batcher.{name}", 600.0)
    assert drawn(4, (1,), (1,)) == [4]


def test_a_decoder_that_cannot_begin_again_refuses_everyone(capsys):
    class Broken(ScriptedEngine):
        made = 0

        def scheduler(self):
            self.made += 1
            if self.made > 1:
                raise MemoryError("no room for new caches")
            scheduler = super().scheduler()
            scheduler.collect = lambda: (_ for _ in ()).throw(RuntimeError("the device is full"))
            return scheduler

    refused = []

    async def one(batcher):
        try:
            await ask(batcher, 1)
        except Refusal as refusal:
            refused.append(refusal.status)

    async def run():
        batcher = Batcher(Broken(4), 100)
        batcher.start()
        await asyncio.wait_for(one(batcher), 30)
        said = ""
        while "start the server anew" not in said:
            said += capsys.readouterr().err
            await asyncio.sleep(0.01)
        await asyncio.wait_for(one(batcher), 30)
        await batcher.stop()

    asyncio.run(run())
    assert refused == [500, 503]


def test_many_answers_of_one_request_do_not_keep_others_waiting():
    engine, order = ScriptedEngine(4), []

    async def one(batcher, n, late=0.0):
        await asyncio.sleep(late)
        answers = batcher.ask([1], n, "base")
        async for _ in answers.chunks():
            pass
        answers.close()
        order.append(n)

    async def run():
        batcher = Batcher(engine, 1000)
        batcher.start()
        await asyncio.gather(one(batcher, 400), one(batcher, 3), one(batcher, 2), one(batcher, 5))
        await batcher.stop()

    asyncio.run(run())
    assert order[-1] == 400 and sum(engine.began) == 410 and max(engine.began) == 4


def test_a_client_with_hundreds_of_requests_does_not_keep_others_waiting():
    order = []

    async def one(batcher, client, n=1):
        answers = batcher.ask([1], n, "base", client)
        async for _ in answers.chunks():
            pass
        answers.close()
        order.append(client)

    async def run():
        batcher = Batcher(engine, 1000)
        asked = asyncio.gather(*(one(batcher, "many") for _ in range(300)), one(batcher, "few", 6), one(batcher, "one"))
        await asyncio.sleep(0)
        batcher.start()
        await asked
        await batcher.stop()

    engine = ScriptedEngine(4)
    asyncio.run(run())
    # Of four slots three clients get one each at every step, and one of them two.
    assert order.index("one") <= 4 and order.index("few") <= 6 * 3
    assert len(order) == 302 and sum(engine.began) == 307 and max(engine.began) == 4


def test_a_client_leaves_room_in_the_queue_for_others():
    async def run():
        batcher = Batcher(ScriptedEngine(4), 100)  # not started: nothing is decoded
        with pytest.raises(Refusal, match="room for others") as refused:
            for _ in range(100):
                batcher.ask([1], 1, "base", "many")
        assert batcher.num_answers == 75 and refused.value.status == 429
        batcher.ask([1], 25, "base", "other")
        with pytest.raises(Refusal, match="100 answers wait"):
            batcher.ask([1], 1, "base", "third")

    asyncio.run(run())


def test_a_place_in_the_queue_is_free_once_its_answers_are_decoded_read_or_not():
    async def run():
        batcher = Batcher(ScriptedEngine(4), 8)
        batcher.start()
        unread = batcher.ask([1], 8, "base")
        while batcher.num_answers:
            await asyncio.sleep(0.01)
        await asyncio.wait_for(ask(batcher, 1), 30)
        assert unread.inbox.qsize() == 8 and batcher.state() == "ok"
        unread.close()
        await batcher.stop()

    asyncio.run(run())


def test_who_is_under_way_when_the_server_stops_is_told_so(monkeypatch):
    async def run():
        engine = ScriptedEngine(4)
        made = engine.scheduler()
        made.busy, made.dispatch, made.collect = True, lambda: None, lambda: []  # never done
        engine.scheduler = lambda: made
        batcher = Batcher(engine, 8)
        batcher.start()
        answers = batcher.ask([1], 2, "base")
        batcher.close(0.05)
        for wait in (ask(batcher, 1), anext(answers.chunks())):
            with pytest.raises(Refusal, match="stopping") as refused:
                await asyncio.wait_for(wait, 10)
            assert refused.value.status == 503
        answers.close()
        await batcher.stop()

    asyncio.run(run())


def test_an_engine_without_a_step_is_told_as_stalled_whatever_is_asked_meanwhile(monkeypatch):
    monkeypatch.setattr("em_jax.serve.batcher.STALLED_SECONDS", 0.2)

    async def run():
        engine, stuck = ScriptedEngine(4), threading.Event()
        made = engine.scheduler()
        made.dispatch = stuck.wait
        engine.scheduler = lambda: made
        batcher = Batcher(engine, 1000)
        batcher.start()
        answers = []
        async with asyncio.timeout(5):
            while batcher.state() == "ok":
                answers.append(batcher.ask([1], 1, "base", client=str(len(answers))))
                await asyncio.sleep(0.02)
        assert batcher.state() == "stalled"
        for each in answers:
            each.close()
        assert batcher.state() == "ok"
        stuck.set()
        await batcher.stop()

    asyncio.run(run())
