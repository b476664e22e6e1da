"""What the set-up of a run's processes does, in a process of its own."""

import os
import platform
import subprocess
import sys

import pytest

from sluice.cluster.environment import ALLOCATOR, lower_thread_priority

# Prints the page faults of 20 rounds of allocations of mixed sizes in a thread, as of steps' tensors, after
# five such.
FAULTS = """
import random, resource, threading
import numpy as np

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def work():
    draw = random.Random(0)
    for number in range(25):
        if number == 5:
            before = faults()
        kept = [np.ones(draw.randrange(1_000_000, 12_000_000), dtype=np.uint8) for _ in range(30)]
        del kept
    print(faults() - before)

thread = threading.Thread(target=work)
thread.start()
thread.join()
"""


def faults(environment):
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", FAULTS],
        env=plain | environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the variables are glibc's")
def test_memory_of_a_step_is_kept_for_the_next_one():
    assert faults(ALLOCATOR) < faults({}) / 5


# Counts collections while as many objects live as in a few engine steps, then shows that cycles are still
# found: new ones, and after another call those that were set apart by the one before.
COLLECTIONS = """
import gc, weakref
from sluice.cluster.environment import raise_gc_threshold

class Node:
    def __init__(self):
        self.itself = self

old = Node()
raise_gc_threshold()
before = sum(generation["collections"] for generation in gc.get_stats())
kept = [[] for _ in range(20_000)]
print(sum(generation["collections"] for generation in gc.get_stats()) - before)
new = Node()
new_gone, old_gone = weakref.ref(new), weakref.ref(old)
del new, old
kept += [[] for _ in range(50_000)]
print(new_gone() is None, old_gone() is None)
raise_gc_threshold()
print(old_gone() is None)
"""


def test_garbage_is_looked_for_seldom_and_still_found():
    done = subprocess.run(
        [sys.executable, "-c", COLLECTIONS], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split() == ["0", "True", "False", "True"]


# Tells whether a thread that was there before and one that came after give way, and the one that computes
# does not.
POLICIES = """
import os, threading
from sluice.cluster.environment import lower_thread_priority

there, told = threading.Event(), threading.Event()
found = {}

def after():
    found["after"] = os.sched_getscheduler(threading.get_native_id())

def before():
    there.set()
    told.wait(60)
    found["before"] = os.sched_getscheduler(threading.get_native_id())
    later = threading.Thread(target=after)
    later.start()
    later.join()

thread = threading.Thread(target=before)
thread.start()
there.wait(60)
os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))  # as inherited
lower_thread_priority(but=threading.get_native_id())
told.set()
thread.join()
print(found["before"] == found["after"] == os.SCHED_BATCH)
print(os.sched_getscheduler(threading.get_native_id()) == os.SCHED_OTHER)
lower_thread_priority()
print(os.sched_getscheduler(threading.get_native_id()) == os.SCHED_BATCH)
"""


@pytest.mark.skipif(platform.system() != "Linux", reason="the policy is Linux's")
def test_all_threads_get_a_lower_priority_but_the_one_that_computes():
    done = subprocess.run(
        [sys.executable, "-c", POLICIES], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split() == ["True", "True", "True"]


def test_a_system_that_does_not_allow_it_is_left_as_it_is(monkeypatch):
    asked = []

    def refuse(thread, policy, parameters):
        asked.append(thread)
        raise PermissionError("not here")

    monkeypatch.setattr(os, "sched_setscheduler", refuse, raising=False)
    lower_thread_priority()
    before = list(asked)
    assert bool(before) == hasattr(os, "SCHED_BATCH")
    monkeypatch.delattr(os, "SCHED_BATCH", raising=False)
    lower_thread_priority()
    assert asked == before
