"""A search for better parameters of one member: Optuna's trials, each one training, judged on the development split.

The test split is not scored: a trial sees the clips that train and those of the development split, nothing else.
"""

import csv
import io
import shutil
import sys
from pathlib import Path
from typing import Any

from components.files import write_json, write_text
from components.params import Params, parse_params
from components.tracked import CODE, data_of
from components.tracking import Tracker, connect
from components.train import prepare_job
from components.tune_params import Range
from components.versions import code_version, content_key
from model.errors import UserError
from model.store import Store, open_store

JUDGED = "dev/top1"


def tune(
    params: Params, member: str = "", data: Path | None = None, trials: int | None = None, out: Path | None = None
) -> dict[str, Any]:
    """Search the ranges of `tune:` in params.yaml for the highest top-1 on the development split.

    The epoch is chosen on that split too, so the value found is optimistic; `sixstream run` with it gives the honest
    one. Trials behind the median are stopped early. Writes `best.json`, `trials.csv` and Optuna's `study.db`; the
    same command goes on with the trials that are missing. Every trial is an MLflow run below that of the search.

    Args:
        params: the parameters; `tune` says what is searched. The protocol is taken to be `development`.
        member: member to train in place of the one named there.
        data: folder of the packed store (default: data/packed/<dataset>).
        trials: trials in all, in place of the number there.
        out: folder for the results (default: tuning/<dataset>/<member>).

    Raises:
        UserError: nothing is declared, the data leave no development split, or no trial came to an end.
    """
    import optuna

    spec = params.tune
    member = member or spec.member or next(iter(params.members))
    if not spec.ranges:
        raise UserError("params.yaml: tune.ranges: declares nothing to search; see docs/ABLATIONS.md")
    params = params.model_copy(update={"protocol": "development"})
    if params.member(member).train == "none":
        raise UserError(f"members.{member}: is not trained (train: none), so there is nothing to search")
    store = open_store(data or Path("data") / "packed" / params.dataset)
    out = out or Path("tuning") / params.dataset / member
    out.mkdir(parents=True, exist_ok=True)
    searched = {name: span.model_dump() for name, span in spec.ranges.items()}
    key = content_key(code_version(), params.for_training(member), searched, spec.seed, store.data_hash)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        storage=f"sqlite:///{(out / 'study.db').resolve()}",
        study_name=key,
        load_if_exists=True,
        direction="maximize",
        pruner=optuna.pruners.MedianPruner(n_startup_trials=spec.warm_up, n_warmup_steps=spec.warm_up),
    )
    ended = [trial for trial in study.trials if trial.state.is_finished()]
    # With the same seed a search that goes on would draw its first values again.
    study.sampler = optuna.samplers.TPESampler(seed=spec.seed + len(ended))
    tracker = connect(Path.cwd())
    experiment = f"{params.dataset}/{params.protocol}/tune"
    about = {"member": member, "ranges": searched}
    parent = tracker.parent_run(experiment, key, f"tune/{member}", about, data_of(params, store))
    search = _Search(params, member, store, key, tracker, experiment, parent)
    missing = (trials or spec.trials) - len(ended)
    if missing > 0:
        study.optimize(search.trial, n_trials=missing, catch=(UserError,))
    tracker.end_parent(experiment, parent)
    return _told(study, member, out, search.failure)


class _Search:
    """What all trials share."""

    def __init__(
        self, params: Params, member: str, store: Store, key: str, tracker: Tracker, experiment: str, parent: str
    ) -> None:
        self.params, self.member, self.store, self.key = params, member, store, key
        self.tracker, self.experiment, self.parent = tracker, experiment, parent
        self.failure = ""

    def trial(self, trial: Any) -> float:
        """Train with one draw of the parameters; the highest top-1 of an epoch on the development split."""
        values = {name: suggested(trial, name, span) for name, span in self.params.tune.ranges.items()}
        tags = {"member": self.member, "trial": str(trial.number)}
        key, name = content_key(self.key, trial.number), f"trial {trial.number:03d}"
        data = data_of(self.params, self.store)
        with self.tracker.member_run(self.experiment, name, key, self.parent, tags, data=data) as run:
            run.log_params(values)
            run.log_environment(CODE)
            try:
                best = self._train(trial, values, run)
            except UserError as error:
                self.failure = str(error)
                run.log_tags({"state": "failed"})
                raise
            run.log_tags({"state": "complete" if best is not None else "pruned"})
            if best is not None:
                run.log_final({f"{JUDGED}/best": best})
        if best is None:
            from optuna import TrialPruned

            raise TrialPruned
        return best

    def _train(self, trial: Any, values: dict[str, Any], run: Any) -> float | None:
        """The value of a trial, None when it is pruned."""
        import torch
        from optuna import TrialPruned

        from model.train import fit

        device = "cuda" if torch.cuda.is_available() else "cpu"
        job, _ = prepare_job(changed(self.params, self.member, values), self.member, self.store, device)
        if job["dev"] is None:
            raise UserError("tune: these data leave no development split, on which trials are judged")
        best = 0.0

        def after(epoch: int, record: dict[str, float]) -> None:
            nonlocal best
            run.log_metrics(record, epoch)
            if JUDGED in record:
                best = max(best, record[JUDGED])
                trial.report(record[JUDGED], epoch)
                if trial.should_prune():
                    raise TrialPruned

        folder = Path(".work") / "tuning" / f"{self.key}-{trial.number}"
        try:
            fit(**job, folder=folder, log=after, fingerprint={"trial": trial.number})
        except TrialPruned:
            return None
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return best


def suggested(trial: Any, name: str, span: Range) -> Any:
    """Optuna's draw of one parameter."""
    if span.choices:
        return trial.suggest_categorical(name, span.choices)
    assert span.low is not None and span.high is not None
    if span.integer:
        return trial.suggest_int(name, int(span.low), int(span.high), log=span.log)
    return trial.suggest_float(name, span.low, span.high, log=span.log)


def changed(params: Params, member: str, values: dict[str, Any]) -> Params:
    """The parameters with some of a member's training set. Raises UserError naming what is unknown or out of range."""
    content = params.model_dump(mode="json", by_alias=True, exclude_unset=True)
    for name, value in values.items():
        part, *path = name.split(".")
        node = content["datasets"][params.dataset] if part == "recipe" else content["members"][member]
        for key in (part, *path[:-1]):
            node = node.setdefault(key, {})
        node[path[-1]] = value
    return parse_params(content, f"tune, {', '.join(f'{name}={value}' for name, value in values.items())}")


def _told(study: Any, member: str, out: Path, failure: str) -> dict[str, Any]:
    """Write and print what the search found. Raises UserError when no trial came to an end."""
    rows = [trial for trial in study.trials if trial.state.is_finished()]
    complete = [trial for trial in rows if trial.state.name == "COMPLETE"]
    if not complete:
        raise UserError(f"tune: none of {len(rows)} trials came to an end; the last failure: {failure or 'none'}")
    names = list(dict.fromkeys(name for trial in rows for name in trial.params))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["trial", "state", JUDGED, "epochs", *names])
    for trial in rows:
        value = trial.value if trial.state.name == "COMPLETE" else ""
        epochs = len(trial.intermediate_values)
        state = trial.state.name.lower()
        writer.writerow([trial.number, state, value, epochs, *(trial.params.get(name, "") for name in names)])
    write_text(out / "trials.csv", text.getvalue())
    best = study.best_trial
    found = {"member": member, "trial": best.number, JUDGED: best.value, "values": best.params, "trials": len(rows)}
    write_json(out / "best.json", found)
    pruned = sum(trial.state.name == "PRUNED" for trial in rows)
    print(f"{member}: {len(rows)} trials, {pruned} pruned; the best, {best.number}, has {best.value:.2%} top-1 on the")
    print(f"development split, which it was chosen on. It is in {out / 'best.json'}:")
    for name, value in best.params.items():
        print(f"  {name}: {value}")
    print("The test split was not looked at.", file=sys.stderr)
    return found
