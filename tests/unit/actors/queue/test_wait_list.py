import asyncio

import pytest

from sluice.actors.queue.wait_list import WaitList


def run(scenario):
    return asyncio.run(scenario())


def test_first_come_first_served_up_to_the_first_in_vain():
    async def scenario():
        stock, line = [1, 2], WaitList()
        futures = [line.add(lambda: stock.pop(0) if stock else None) for _ in range(3)]
        assert line.wake() and len(line) == 1
        stock.append(3)
        assert line.wake() and not line.wake()
        return [future.result() for future in futures]

    assert run(scenario) == [1, 2, 3]


def test_a_caller_in_vain_holds_up_those_behind_unless_everyone_is_tried():
    async def scenario():
        line = WaitList()
        never, ready, later = line.add(lambda: None), line.add(lambda: "yes"), line.add(lambda: None)
        assert not line.wake() and not ready.done()
        assert line.wake(everyone=True) and ready.result() == "yes"
        assert [future.done() for future in (never, later)] == [False, False]
        order = []
        line.add(lambda: order.append("last"))
        line.wake(everyone=True)
        return len(line), order

    assert run(scenario) == (3, ["last"])


def test_who_gave_up_takes_nothing():
    async def scenario():
        taken, line = [], WaitList()
        gone = line.add(lambda: taken.append("gone") or True)
        gone.cancel()
        line.add(lambda: taken.append("here") or True)
        assert line.wake() and not len(line)
        return taken

    assert run(scenario) == ["here"]


def test_an_error_ends_the_wait_of_the_caller_it_belongs_to():
    async def scenario():
        def fail():
            raise ValueError("no such step")

        line = WaitList()
        failed, fine = line.add(fail), line.add(lambda: 1)
        assert line.wake()
        with pytest.raises(ValueError, match="no such step"):
            failed.result()
        return fine.result()

    assert run(scenario) == 1


def test_who_is_dismissed_goes_with_nothing():
    async def scenario():
        taken, line = [], WaitList()
        gone, here = (
            line.add(lambda name=name: taken.append(name) or True, name) for name in ("gone", "here")
        )
        line.release("gone")
        assert gone.result() is None and line.wake()
        return taken, here.result()

    assert run(scenario) == (["here"], True)
