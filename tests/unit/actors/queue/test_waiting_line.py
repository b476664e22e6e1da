import asyncio

import pytest

from sluice.actors.queue.waiting_line import Line


def run(scenario):
    return asyncio.run(scenario())


def test_first_come_first_served_up_to_the_first_in_vain():
    async def scenario():
        stock, line = [1, 2], Line()
        futures = [line.join(lambda: stock.pop(0) if stock else None) for _ in range(3)]
        assert line.serve() and len(line) == 1
        stock.append(3)
        assert line.serve() and not line.serve()
        return [future.result() for future in futures]

    assert run(scenario) == [1, 2, 3]


def test_a_caller_in_vain_holds_up_those_behind_unless_everyone_is_tried():
    async def scenario():
        line = Line()
        never, ready, later = line.join(lambda: None), line.join(lambda: "yes"), line.join(lambda: None)
        assert not line.serve() and not ready.done()
        assert line.serve(everyone=True) and ready.result() == "yes"
        assert [future.done() for future in (never, later)] == [False, False]
        order = []
        line.join(lambda: order.append("last"))
        line.serve(everyone=True)
        return len(line), order

    assert run(scenario) == (3, ["last"])


def test_who_gave_up_takes_nothing():
    async def scenario():
        taken, line = [], Line()
        gone = line.join(lambda: taken.append("gone") or True)
        gone.cancel()
        line.join(lambda: taken.append("here") or True)
        assert line.serve() and not len(line)
        return taken

    assert run(scenario) == ["here"]


def test_an_error_ends_the_wait_of_the_caller_it_belongs_to():
    async def scenario():
        def fail():
            raise ValueError("no such step")

        line = Line()
        failed, fine = line.join(fail), line.join(lambda: 1)
        assert line.serve()
        with pytest.raises(ValueError, match="no such step"):
            failed.result()
        return fine.result()

    assert run(scenario) == 1


def test_who_is_dismissed_goes_with_nothing():
    async def scenario():
        taken, line = [], Line()
        gone, here = (line.join(lambda name=name: taken.append(name) or True, name) for name in ("gone", "here"))
        line.dismiss("gone")
        assert gone.result() is None and line.serve()
        return taken, here.result()

    assert run(scenario) == (["here"], True)
