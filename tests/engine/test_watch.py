"""When a worker counts as hung, on a clock that the test moves; and what the kernel has to do with it."""

import os
from dataclasses import dataclass, field

import pytest

from autopeft.engine.causes import CAUSES, cause_of, tally
from autopeft.engine.pulse import Pulse
from autopeft.engine.trial import TrialResult
from autopeft.engine.watch import (
    FIRST_BEATS,
    IDLE,
    OPENING_SECONDS,
    PATIENCE,
    PATIENCE_AT_FIRST,
    Bounds,
    Verdict,
    Watch,
    process_bytes,
    processor_seconds,
)


@dataclass
class Scene:
    """A watch over worker 0, of which everything that it looks at is told by the test."""

    bounds: Bounds = field(default_factory=lambda: Bounds(silence_seconds=10.0))
    now: float = 1000.0
    held: int = 0
    kills: int = 7
    used: float = 0.0
    watch: Watch = field(init=False)

    def __post_init__(self) -> None:
        self.watch = Watch(
            self.bounds, lambda: self.now, lambda pid: self.held, lambda: self.kills, lambda pid: self.used
        )

    def passes(self, seconds: float, tick: float = 0.5) -> Verdict | None:
        """The first verdict within so many seconds, in which the supervisor looks at every tick."""
        for _ in range(round(seconds / tick)):
            self.now += tick
            self.watch.look()
            if (verdict := self.watch.judge(0, 1)) is not None:
                return verdict
        return None

    def works(self, batches: int, seconds: float) -> None:
        """Batches of so many seconds each, heard of one by one."""
        for _ in range(batches):
            assert self.passes(seconds) is None
            self.watch.hears(0, 1, seconds)


def test_silence_beyond_the_bound_is_a_hang() -> None:
    scene = Scene()
    scene.watch.begins(0)
    scene.works(FIRST_BEATS, 0.1)
    assert scene.passes(10.0) is None
    assert scene.passes(1.0) == Verdict("hang", "made no progress for 10.5 s")


def test_who_opens_and_uses_no_processor_hangs() -> None:
    scene = Scene()
    scene.watch.opens(0)
    for _ in range(100):  # loading from a slow disk
        assert scene.passes(30) is None
        scene.used += 1.0
    assert scene.passes(OPENING_SECONDS) is None
    assert scene.passes(1.0) == Verdict("hang", "did nothing for 60.5 s")


def test_patience_with_who_opens_is_that_of_the_first_batches() -> None:
    scene = Scene(Bounds(silence_seconds=300.0))
    scene.watch.opens(0)
    assert scene.passes(PATIENCE_AT_FIRST * 300) is None
    assert scene.passes(1.0) == Verdict("hang", "did nothing for 1,800 s")
    scene.watch.opened(0)
    assert scene.passes(PATIENCE_AT_FIRST * 300 + 1) is None


def test_asking_for_a_lock_again_and_again_is_no_hang() -> None:
    scene = Scene()
    scene.watch.opens(0)
    for _ in range(1000):
        scene.used += 2 * IDLE
        assert scene.passes(1.0) is None


def test_a_hang_at_opening_is_not_looked_for_where_no_hang_is() -> None:
    scene = Scene(Bounds(silence_seconds=None))
    scene.watch.opens(0)
    assert scene.passes(10_000) is None


def test_the_processor_time_of_this_process_grows_and_that_of_no_process_is_0() -> None:
    before = processor_seconds(os.getpid())
    while processor_seconds(os.getpid()) == before:
        pass
    assert processor_seconds(2**22 + 1) == 0


def test_the_first_batches_may_take_longer() -> None:
    scene = Scene()
    scene.watch.begins(0)
    scene.works(FIRST_BEATS - 1, 0.1)
    assert scene.passes(PATIENCE_AT_FIRST * 10.0) is None
    assert scene.passes(1.0) is not None


def test_who_was_silent_for_long_before_may_be_so_again_in_any_later_trial() -> None:
    scene = Scene()
    scene.watch.begins(0)
    scene.works(FIRST_BEATS + 1, 4.0)
    scene.watch.ends(0)
    scene.watch.begins(0)
    scene.works(FIRST_BEATS, 0.5)
    assert scene.passes(PATIENCE * 4.0) is None
    assert scene.passes(1.0) is not None


def test_a_machine_that_slept_blames_nobody() -> None:
    scene = Scene()
    scene.watch.begins(0)
    scene.works(FIRST_BEATS, 0.1)
    scene.now += 100_000  # the lid was closed
    scene.watch.look()
    assert scene.watch.judge(0, 1) is None
    assert scene.passes(6.0) is not None, "from there on time counts"


def test_an_idle_worker_and_one_without_a_bound_never_hang() -> None:
    idle = Scene()
    assert idle.passes(1000.0) is None
    unbound = Scene(Bounds(silence_seconds=None))
    unbound.watch.begins(0)
    assert unbound.watch.tick is None and unbound.passes(100_000.0, tick=100.0) is None


def test_a_process_that_holds_too_much_is_ended_whether_it_works_or_not() -> None:
    scene = Scene(Bounds(memory_bytes=6 << 30))
    scene.held = 6 << 30
    assert scene.passes(5.0) is None
    scene.held += 1 << 20
    assert scene.passes(1.0) == Verdict("memory", "held 6.00 GiB of memory, over --worker-memory 6.00 GiB")


def test_the_kernel_is_named_only_if_it_counts_a_kill_at_that_time() -> None:
    scene = Scene()
    scene.passes(5.0)
    assert scene.watch.of_kernel() is None
    scene.kills += 1
    scene.passes(2.0)  # looked at between the kill and the end of the process
    assert scene.watch.of_kernel() == Verdict("memory", "was killed by the kernel, which was out of memory")
    scene.passes(15.0)
    assert scene.watch.of_kernel() is None, "an earlier one is no evidence"


def test_files_that_are_mapped_do_not_count_as_held(tmp_path) -> None:  # type: ignore[no-untyped-def]
    import mmap
    import os

    before = process_bytes(os.getpid())
    file = tmp_path / "cache"
    file.write_bytes(b"1" * (64 << 20))
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert mapped[::4096].count(b"1") == (64 << 20) // 4096
        grown = process_bytes(os.getpid()) - before
    if not hasattr(os, "sched_getaffinity"):
        pytest.skip("this system does not tell pages of files from others")
    assert grown < 32 << 20


def test_a_worker_tells_of_its_beats_once_a_second_with_the_longest_silence() -> None:
    now, sent = 50.0, list[tuple[int, float]]()
    pulse = Pulse(lambda beats, silence: sent.append((beats, silence)), lambda: now)
    for seconds in (30.0, 0.25, 0.5, 0.25, 0.125, 0.25, 3.0):
        now += seconds
        pulse()
    assert sent == [(1, 0.0), (3, 0.5), (3, 3.0)]


def test_causes_of_earlier_studies_are_read_and_others_are_not() -> None:
    assert [cause_of(word) for word in ("exception", "timeout", "out of memory", "not finite")] == [
        "bug",
        "time-out",
        "OOM",
        "NaN",
    ]
    for cause in CAUSES:
        data = TrialResult.failed(1, cause, "why", seconds=1.0).to_json()
        assert TrialResult.from_json(data).cause == cause_of(cause) == cause
    with pytest.raises(ValueError, match="not a cause"):
        cause_of("bad luck")


def test_causes_are_counted_most_frequent_first() -> None:
    assert list(tally(["NaN", None, "OOM", "NaN"]).items()) == [("NaN", 2), ("OOM", 1)]
