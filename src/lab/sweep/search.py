"""Searching a space instead of running through a grid: Optuna proposes, the sweep's launcher executes."""

from __future__ import annotations

import math
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lab.errors import HOLDS, Refusal
from lab.rundir import RunDir, write_atomically
from lab.sweep import queue, results
from lab.sweep.grid import Direction, Optimum
from lab.sweep.local import CONSOLE, Local, Progress, exit_code
from lab.sweep.plan import Composer, Point, Sweep
from lab.types import NonNegative, NonNegativeInt, PositiveInt
from lab.warm import Job, Workers

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler
    from optuna.trial import BaseTrial

Sampler = Literal["tpe", "gp", "qmc", "random"]
STUDY = "study.db"
POLL = 1.0
"""Seconds between two looks at what the running trials have logged."""
REPORTS = 50
"""So many of a trial's rows, evenly spread, reach the study: each is a transaction of SQLite's, some 10 ms."""


class Search:
    """Looks for the parameters at which the objective is best, with Optuna (Akiba et al. 2019).

    The space is what the command line or `params` sweep: `interval(0.1, 2)`, `tag(log, interval(1e-4, 1))`,
    `int(interval(1, 16))`, `choice(a, b)`, `range(1, 9)`. The study lies in `study.db` (SQLite) in the sweep's folder:
    the same command goes on with it, trials that a killed start left unfinished first, and a larger `n_trials` adds
    some. Every proposal is a function of (seed, number of the trial, what was told before).

    Args:
        params: key → what to search, as on the command line, which wins.
        direction: of the objective (config key `objective`).
        n_trials: how many in all.
        sampler: who proposes.
        startup_trials: proposed at random before the sampler models the objective.
        pruner: stops trials whose logged objective is worse than that of the others at the same step: `median` than
            their median, `hyperband` than the best of a bracket.
        warmup_steps: before which no trial is pruned.
        seed: of the proposals.
        log: search in the logarithm of the objective, which is then positive.
        worst: an objective that is no result, such as the one before training: beyond it all are alike to the search.
        optimum: key → the value at which theory predicts the best objective.
        within: how far, relatively, the best value may lie from it.
        because: the argument for `within`.
    """

    def __init__(
        self,
        params: dict[str, str] | None = None,
        direction: Direction = "minimize",
        n_trials: PositiveInt = 30,
        sampler: Sampler = "tpe",
        startup_trials: PositiveInt = 10,
        pruner: Literal["none", "median", "hyperband"] = "none",
        warmup_steps: NonNegativeInt = 0,
        seed: NonNegativeInt = 0,
        log: bool = False,
        worst: float | None = None,
        optimum: dict[str, float] | None = None,
        within: NonNegative = 0.0,
        because: str = "",
    ) -> None:
        self.params, self.direction, self.n_trials = params or {}, direction, n_trials
        self.sampler, self.startup_trials, self.seed = sampler, startup_trials, seed
        self.pruner, self.warmup_steps = pruner, warmup_steps
        self.log, self.worst = log, worst
        self.optimum = Optimum(optimum or {}, direction, within, because)

    def identity(self) -> dict[str, str]:
        """What decides which trials are proposed and what is told of them; more of them (`n_trials`) are no others."""
        keys = ("direction", "sampler", "startup_trials", "pruner", "warmup_steps", "seed", "log", "worst")
        return {f"hydra.sweeper.{key}": str(getattr(self, key)) for key in keys}

    def run(self, sweep: Sweep, space: Mapping[str, BaseDistribution], fixed: Sequence[str], launcher: Any) -> int:
        """Carry the study to `n_trials`; returns the sweep's exit code."""
        import optuna

        if isinstance(launcher, Local) and (queued := sorted(queue.live(sweep.path))):
            raise Refusal(
                f"{', '.join(queued)} of {sweep.path} are queued or running in SLURM: wait for them with "
                f"hydra/launcher=slurm hydra.launcher.wait=true, or take them off with lab cancel {sweep.path}"
            )
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)  # a line for every trial
        with _readable(sweep.path / STUDY):
            study = optuna.create_study(
                storage=f"sqlite:///{sweep.path / STUDY}",
                study_name=sweep.path.name,
                direction=self.direction,
                pruner=self._pruner(),
                load_if_exists=True,
            )
            trials = _Trials(self, sweep, study, space, fixed)
            again = trials.judge_lost(launcher)
            if again == 128 + signal.SIGINT:
                return again
            code = trials.run_here(launcher) if isinstance(launcher, Local) else trials.run_in_batches(launcher)
            return code or again

    def sampler_for(self, number: int) -> BaseSampler:
        """Who proposes trial `number`: made anew each time, so that a resumed study draws what it would have drawn."""
        from optuna import samplers

        seed = (self.seed * 1_000_003 + number) % 2**32
        if self.sampler == "tpe":
            return samplers.TPESampler(seed=seed, n_startup_trials=self.startup_trials, constant_liar=True)
        if self.sampler == "gp":
            return samplers.GPSampler(seed=seed, n_startup_trials=self.startup_trials)
        return samplers.QMCSampler(seed=self.seed) if self.sampler == "qmc" else samplers.RandomSampler(seed=seed)

    def _pruner(self) -> Any:
        from optuna import pruners

        if self.pruner == "median":
            return pruners.MedianPruner(n_startup_trials=self.startup_trials, n_warmup_steps=self.warmup_steps)
        if self.pruner == "hyperband":
            return pruners.HyperbandPruner(min_resource=max(1, self.warmup_steps))
        return pruners.NopPruner()


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    """A Refusal that names the study's file where SQLite cannot read or write it."""
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import DatabaseError

    try:
        yield
    except (DatabaseError, StorageInternalError) as error:
        cause = error if isinstance(error, DatabaseError) else error.__cause__ or error
        said = " ".join(str(getattr(cause, "orig", None) or cause).split())
        raise Refusal(f"{file} cannot be used as the search's study: {said}; mend it or move it away") from None


class _Trials:
    """The trials of one study: asked for, executed and told."""

    def __init__(
        self, search: Search, sweep: Sweep, study: Study, space: Mapping[str, BaseDistribution], fixed: Sequence[str]
    ) -> None:
        self.search, self.sweep, self.study, self.space, self.fixed = search, sweep, study, dict(space), list(fixed)
        self.composer = Composer()
        self._again = self._unfinished()

    @property
    def left(self) -> int:
        """How many are still to be started; a trial that is tried again counts once."""
        from optuna.trial import TrialState

        trials = self.study.get_trials(deepcopy=False)
        waiting = sum(trial.state == TrialState.WAITING for trial in trials)
        first = sum(_RETRY not in trial.user_attrs for trial in trials)
        return len(self._again) + waiting + max(0, self.search.n_trials - first)

    def next(self) -> tuple[Trial, Point]:
        """The trial to run next: one that an earlier start began and did not finish, or a new proposal."""
        from optuna import Trial

        if self._again:
            trial = Trial(self.study, self._again.pop(0))
        else:
            self.study.sampler = self.search.sampler_for(len(self.study.get_trials(deepcopy=False)))
            trial = self.study.ask(self.space)
        point = self._point(trial)
        self.sweep.add([point])
        return trial, point

    def _point(self, trial: BaseTrial) -> Point:
        values = {key: str(value) for key, value in trial.params.items()}
        overrides = [*self.fixed, *(f"{key}={value}" for key, value in values.items())]
        return self.composer.point(overrides, values, name=_NAME.format(trial.number))

    def judge_lost(self, launcher: Any) -> int:
        """Run the trials again that came to an end and whose verdict is gone or damaged since; returns the exit code.

        The study keeps what it was told of them: the same run says the same.
        """
        from optuna.trial import TrialState

        ended = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        gone = [trial for trial in ended if not RunDir(self.sweep.path / _NAME.format(trial.number)).has_whole_verdict]
        if not gone:
            return HOLDS
        lost = [self._point(trial) for trial in gone]  # composed and checked, which what is there needs no more
        self.sweep.add(lost)
        for point in lost:
            launcher.check(point.cfg)
        code: int = launcher.run(self.sweep, lost)
        return code

    def tell(self, trial: Trial, point: Point, *, pruned: bool) -> None:
        """The objective that the trial reached; one that diverged counts as the worst there is."""
        from optuna.trial import TrialState

        folder = self.sweep.folder(point)
        row = results.row(point.name, point.values, folder, self.sweep.objective)
        if row.state == "done":
            self.study.tell(trial, self._told(row.objective))
        elif pruned:
            why = f"at step {max(self._reported(trial))}, behind the other trials ({self.search.pruner})\n"
            write_atomically(folder / results.PRUNED, why)
            self.study.tell(trial, state=TrialState.PRUNED)
        else:
            self.study.tell(trial, state=TrialState.FAIL)

    def _told(self, objective: float) -> float:
        """The objective as the study sees it; what diverged is the worst there is."""
        search, up = self.search, self.search.direction == "minimize"
        worst = search.worst if search.worst is not None else math.inf if up else -math.inf
        seen = worst if math.isnan(objective) else min(objective, worst) if up else max(objective, worst)
        return math.log(seen) if search.log and 0 < seen < math.inf else seen

    def run_here(self, launcher: Local) -> int:
        """On this machine: a new proposal whenever there is room, each made with all results there are by then."""
        progress = Progress(self.search.n_trials, launcher.slots, self.search.n_trials - self.left)
        running: dict[Job, tuple[Trial, Point]] = {}
        pruned: set[Job] = set()
        try:
            with Workers(launcher.slots) as workers:
                while running or self.left:
                    while self.left and len(running) < launcher.slots:
                        trial, point = self.next()
                        job = Job(point.cfg, point.overrides, self.sweep.folder(point) / CONSOLE)
                        running[job] = (trial, point)
                        while not workers.start(job):  # room for the job, but not for all its devices
                            self._end(workers.wait(POLL), running, pruned, progress)
                    self._end(workers.wait(POLL), running, pruned, progress)
                    if self.search.pruner != "none":
                        for job in self._to_prune(running, pruned):
                            pruned.add(job)
                            workers.stop(job)
        except KeyboardInterrupt:
            print(f"\nlab: the search was stopped; the same command goes on in {self.sweep.path}", file=sys.stderr)
            return 130
        finally:
            progress.close()
        return exit_code(progress.codes)

    def run_in_batches(self, launcher: Any) -> int:
        """Through a launcher that takes points and waits for all of them, each batch made with the results before it.

        A batch of which no trial comes to an end is the last: the trials after it would fare no better.
        """
        progress = Progress(self.search.n_trials, launcher.batch, self.search.n_trials - self.left)
        code = HOLDS
        try:
            while self.left:
                batch = {point.name: (trial, point) for trial, point in self._batch(launcher)}
                pruned: set[str] = set()
                if left := [point for _, point in batch.values() if not RunDir(self.sweep.folder(point)).finished]:
                    code = launcher.run(self.sweep, left, progress, self._pruning(batch, pruned))
                if code == 128 + signal.SIGINT:
                    return code
                for name, (trial, point) in batch.items():
                    if self.search.pruner != "none":
                        self._report(trial, point)
                    self.tell(trial, point, pruned=name in pruned)
                if not pruned and not any(RunDir(self.sweep.folder(point)).finished for _, point in batch.values()):
                    print(
                        f"lab: none of {', '.join(batch)} came to an end; lab status {self.sweep.path}", file=sys.stderr
                    )
                    return code
        finally:
            progress.close()
        return code

    def _pruning(
        self, batch: Mapping[str, tuple[Trial, Point]], pruned: set[str]
    ) -> Callable[[set[str]], set[str]] | None:
        """Which of the runs of these names are to be stopped; they are added to `pruned`."""
        if self.search.pruner == "none":
            return None

        def to_stop(running: set[str]) -> set[str]:
            pruned.update(name for name in running - pruned if self._is_behind(*batch[name]))
            return pruned

        return to_stop

    def _batch(self, launcher: Any) -> list[tuple[Trial, Point]]:
        batch = [self.next() for _ in range(min(self.left, launcher.batch))]
        for _, point in batch:
            launcher.check(point.cfg)
        return batch

    def _end(
        self,
        ended: Sequence[tuple[Job, int]],
        running: dict[Job, tuple[Trial, Point]],
        pruned: set[Job],
        progress: Progress,
    ) -> None:
        for job, code in ended:
            trial, point = running.pop(job)
            if self.search.pruner != "none":
                self._report(trial, point)  # the others are held against all its rows, not those of the last look
            self.tell(trial, point, pruned=job in pruned)
            progress.ended(point.name, HOLDS if job in pruned else code, "pruned" if job in pruned else "")

    def _to_prune(self, running: Mapping[Job, tuple[Trial, Point]], pruned: set[Job]) -> list[Job]:
        """Running trials whose logged objective is worse than the pruner allows."""
        return [job for job, (trial, point) in running.items() if job not in pruned and self._is_behind(trial, point)]

    def _is_behind(self, trial: Trial, point: Point) -> bool:
        return self._report(trial, point) and trial.should_prune()

    def _report(self, trial: Trial, point: Point) -> bool:
        history = results.metrics(RunDir(self.sweep.folder(point)).metrics)
        name = self.sweep.objective or results.first_loss(history)
        known = self._reported(trial)
        apart = max(1, point.cfg.trainer.max_steps // REPORTS)
        chosen: dict[int, tuple[int, float]] = {}  # the first of each stretch: the same steps of every trial
        for step, value in zip(history.get("step", []), history.get(name, []), strict=False):
            chosen.setdefault(int(step) // apart, (int(step), value))
        for step, value in chosen.values():
            if step not in known:
                trial.report(self._told(value), step)
        return bool(chosen)

    def _reported(self, trial: Trial) -> dict[int, float]:
        return self.study._storage.get_trial(trial._trial_id).intermediate_values

    def _unfinished(self) -> list[int]:
        """Trials that a killed start left running; those that failed are queued to be tried once more."""
        from optuna.trial import TrialState

        tried = {trial.user_attrs.get(_RETRY) for trial in self.study.trials}
        for trial in self.study.trials:
            if trial.state == TrialState.FAIL and trial.number not in tried:
                self.study.enqueue_trial(trial.params, user_attrs={_RETRY: trial.number})
        return [trial._trial_id for trial in self.study.trials if trial.state == TrialState.RUNNING]


_NAME = "trial-{:04d}"
"""Of the folder, by the trial's number."""
_RETRY = "retry of"
