"""Drives the residency machine inside a scheduler: one bounded piece of work in front of each iteration.

On every rank of a TP group the same thing happens in front of the same iteration: the plan came with the requests that
SGLang broadcast, and whether a piece of work is done or has failed is agreed on before the machine hears of it.
"""

import logging
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any

from sglang_nightjar.core.messages import Residency
from sglang_nightjar.core.residency import Event, ResidencyMachine, Wish
from sglang_nightjar.draft import upkeep
from sglang_nightjar.draft.agreement import Agree
from sglang_nightjar.draft.draft_kv import DraftKv
from sglang_nightjar.draft.elastic_pool import ElasticPool
from sglang_nightjar.draft.fence import Fence
from sglang_nightjar.draft.pool_tail import PoolTail
from sglang_nightjar.draft.step_times import StepTimes
from sglang_nightjar.draft.weights import DraftWeights
from sglang_nightjar.memory.elastic import MemoryRefusedError

logger = logging.getLogger(__name__)

#: Pieces of work in front of one iteration of a scheduler that has nothing else to do.
_PIECES_WHILE_IDLE = 256

_FAILED, _GOES_ON, _DONE = range(3)

_Work = Generator[None, None, None]


class DraftResidency:
    """Attributes:
    machine: where the draft is.
    weights: the draft's own.
    kv: the draft's own KV cache, if that goes too; and ``kv_stays``, why it does not although it should.
    pool, tail: the target's KV cache, which grows into their place.
    lag: tokens that the draft's KV is behind: of the worst request, of all. Whoever makes that good watches `machine`.
    freed_bytes, extra_tokens: what offloading frees, and the tokens that this adds, as predicted from the shapes.
    times: how long the steps took.
    refused_growths: offloads after which the cache could not grow.
    on_return: called when the draft's weights are back.
    on_loss: called with the requests in work when `kv` is about to lose what is in it.
    on_change: called at every transition, before its work, with whether the draft can run.
    """

    def __init__(
        self,
        weights: DraftWeights,
        pool: ElasticPool,
        tail: PoolTail,
        wish: Callable[[], Wish],
        idle: Callable[[], bool],
        fence: Fence,
        agree: Agree = lambda code: code,
        retract: bool = False,
        ranks: int = 1,
        kv: DraftKv | None = None,
    ):
        """``agree`` returns the least of what all ``ranks`` of the TP group pass to it."""
        self.machine = ResidencyMachine()
        self.weights, self.pool, self.tail = weights, pool, tail
        self.lag: Callable[[], tuple[int, int]] = lambda: (0, 0)
        self.kv, self.kv_stays = kv, ""
        self.freed_bytes = weights.nbytes + (kv.nbytes if kv is not None else 0)
        self.extra_tokens = pool.tokens_gained(self.freed_bytes)
        self.refused_growths = 0
        self.times = StepTimes()
        self.on_return: Callable[[], None] = lambda: None
        self.on_loss: Callable[[Iterable[Any]], None] = lambda requests: None
        self._wish, self._idle, self._fence, self._agree = wish, idle, fence, agree
        self._retract, self._ranks = retract, ranks
        self.on_change: Callable[[bool], None] = lambda has_weights: None
        self._work: _Work | None = None
        self._step = ""
        self._then: Callable[[], None] = lambda: None
        self._is_done = False

    @property
    def is_all_there(self) -> bool:
        """The draft has its weights, and memory for its KV."""
        return self.weights.on_device and (self.kv is None or self.kv.on_device)

    def step(self, last_batch: Any = None) -> None:
        """In front of each iteration, on every rank; ``last_batch`` is what SGLang will merge into the running one."""
        self.tail.last_batch = last_batch
        self.machine.tick()
        pieces = 1
        while self._one_piece() and pieces < _PIECES_WHILE_IDLE and self._idle():
            pieces += 1

    def _one_piece(self) -> bool:
        """Do what is next; False if there is nothing to do."""
        event = self.machine.wanted(self._wish())
        if event is not None:
            self._begin(event)
        if self._work is not None:
            self._advance()
            return True
        return event is not None

    def _begin(self, event: Event) -> None:
        if self._work is not None:
            # Turned back, or parked while catching up.
            self._work.close()
            self._work = None
        before = self.machine.state
        self._go(event, "the plan in force wants it")
        if event is Event.OFFLOAD:
            self._start("offload", self._offload(), self._released)
        elif event is Event.CATCH_UP:
            self._start("catch_up", self._catch_up(), self._caught_up)
        elif event is Event.RECALL:
            self._start("wait", self._wait_for_room(), self._there_is_room)
        elif event is Event.TURN_BACK and before is Residency.LOADING:
            self._start("offload", self._offload(), self._released)
        elif event is Event.TURN_BACK:
            self._regrow_now()

    def _start(self, step: str, work: _Work, then: Callable[[], None]) -> None:
        """Do ``work``, and ``then`` what may only happen once it is done on all ranks."""
        self._step, self._work, self._then, self._is_done = step, work, then, False
        self.times.begin()

    def _advance(self) -> None:
        assert self._work is not None
        code, error = _DONE, ""
        if not self._is_done:
            self.times.piece_begins()
            try:
                next(self._work)
                code = _GOES_ON
            except StopIteration:
                self._is_done = True
            except Exception as failure:
                if self._ranks > 1 and self.machine.state is Residency.SHRINKING and self.tail.extra_tokens:
                    # The others have moved rows that lie in the tail here, so what is free would never agree again.
                    raise
                code, error = _FAILED, f"{type(failure).__name__}: {failure}"
                logger.debug("Nightjar: %s failed", self.machine.state.name, exc_info=True)
            self.times.piece_ends()
        agreed = self._agree(code)
        if agreed == _DONE:
            self._work = None
            self.times.end(self._step)
            self._then()
        elif agreed == _FAILED:
            self._fail(error or "another rank failed")

    def _fail(self, error: str) -> None:
        assert self._work is not None
        self._work.close()
        self._work = None
        failed = self.machine.state
        logger.warning("Nightjar: %s failed: %s", failed.name, error)
        if failed is Residency.OFFLOADING and not self.weights.on_device:
            # The draft is away; what failed is giving its memory back, or the growth. On all ranks there is none.
            self._give_draft_back_quietly()
            self._give_back_quietly(self.pool.shrink(self.pool.base_tokens))
            self.refused_growths += 1
            self._go(Event.RELEASED, error)
            return
        self._go(Event.FAILED, error)
        if self.machine.state is Residency.OFFLOADED:
            self._give_draft_back_quietly()
            self._regrow_now()

    def _go(self, event: Event, reason: str) -> None:
        before, had_weights = self.machine.state, self.machine.has_weights
        after = self.machine.fire(event, reason)
        # Parking and catching up come and go with every switch of γ.
        level = logging.DEBUG if had_weights and self.machine.has_weights else logging.INFO
        logger.log(level, "Nightjar: draft %s -> %s (%s)", before.name, after.name, reason)
        self.on_change(self.machine.has_weights)

    # The work of each state, and what follows it.

    def _offload(self) -> _Work:
        self._fence()
        if self.kv is not None:
            # In front of the same iteration on all ranks, because what is stale decides about shapes.
            self.on_loss(self.tail.in_work())
        # No rank may release anything before all are here. What is launched from now on does not read the weights.
        yield
        yield from self.weights.release()
        if self.kv is not None:
            yield from self.kv.release()

    def _released(self) -> None:
        self._start("grow", self.pool.grow(self.pool.base_tokens + self.extra_tokens), self._grown)

    def _grown(self) -> None:
        self.tail.open(self.extra_tokens)
        self._go(Event.RELEASED, "done")

    def _wait_for_room(self) -> _Work:
        while self.tail.extra_tokens and not self._retract and not self.tail.fits():
            yield

    def _there_is_room(self) -> None:
        self._start("empty", self._empty(), self._emptied)

    def _empty(self) -> _Work:
        while self.tail.extra_tokens:
            if not self.tail.is_held:
                self._fence()
                if self.tail.empty():
                    return
            yield

    def _emptied(self) -> None:
        self.tail.close()
        self._start("shrink", self.pool.shrink(self.pool.base_tokens), self._shrunk)

    def _shrunk(self) -> None:
        self._go(Event.SHRUNK, "done")
        self._start("load", self._load(), self._loaded)

    def _load(self) -> _Work:
        # The tail was given back: only now is there no slot in use for which the draft's KV has no row.
        if self.kv is not None:
            yield from self.kv.load()
        yield from self.weights.load()

    def _loaded(self) -> None:
        self._go(Event.LOADED, "done")
        self.on_return()
        self._start("catch_up", self._catch_up(), self._caught_up)

    def _catch_up(self) -> _Work:
        while self.lag() != (0, 0):
            yield

    def _caught_up(self) -> None:
        self._go(Event.CAUGHT_UP, "done")

    def _regrow_now(self) -> None:
        """Back to OFFLOADED: what was withheld or given back of the tail serves again, if every rank has the memory."""
        code = _DONE
        if self.tail.extra_tokens == 0:
            try:
                for _ in self.pool.grow(self.pool.base_tokens + self.extra_tokens):
                    pass
            except MemoryRefusedError as error:
                logger.warning("Nightjar: the KV cache can't grow into the draft's place: %s", error)
                code = _FAILED
        if self._agree(code) == _DONE:
            self.tail.open(self.extra_tokens)
        else:
            self.refused_growths += 1
            self._give_back_quietly(self.pool.shrink(self.pool.base_tokens))

    def _give_draft_back_quietly(self) -> None:
        self._give_back_quietly(self.weights.release())
        if self.kv is not None:
            self._give_back_quietly(self.kv.release())

    @staticmethod
    def _give_back_quietly(work: Iterator[None]) -> None:
        """Releasing may fail; then the memory is not given back, which costs memory and nothing else."""
        try:
            for _ in work:
                pass
        except (OSError, RuntimeError) as error:
            logger.warning("Nightjar: memory could not be given back: %s", error)


def abandon(why: str) -> None:
    """After a fault of ours: the draft stays where it is, and works if all of it is there."""
    global current, why_not
    if current is not None:
        current.on_change(current.is_all_there)
    current, why_not = None, why


def report() -> tuple[int, int, int]:
    """Residency, largest and total lag, as in `core.messages.Telemetry`."""
    if current is None:
        return (0, *upkeep.current.lag()) if upkeep.current is not None else (0, 0, 0)
    return (int(current.machine.state), *current.lag())


#: The driver of this process, if it is a scheduler whose draft can go away.
current: DraftResidency | None = None
#: Why the draft of this process can't go away, for people; "" if it can.
why_not = "no draft"
