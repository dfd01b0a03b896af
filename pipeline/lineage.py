"""`sixstream lineage`: from a registered model to its data, parameters, code and pipeline run, and back from data."""

import json as json_text
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

from components.lineage import UNKNOWN, Link, Outside, chain, seen_by
from components.storage import dvc_md5
from components.tracked import CODE
from components.tracked_run import brief
from components.tracking import connect
from model.errors import UserError


def lineage(model: str = "", /, *, data: str = "", json: bool = False) -> int:
    """Print what a model comes from and check that it is still there; or, with --data, which models saw these data.

    Args:
        model: models:/NAME@ALIAS, models:/NAME/VERSION or runs:/ID.
        data: md5 that DVC gives raw data, as in data/raw/NAME.dvc or dvc.lock.
        json: print JSON.

    Returns:
        0, or 1 when something that the model names is missing.

    Raises:
        UserError: no such model or run, or no run saw such data.
    """
    if bool(model) == bool(data):
        raise UserError("lineage: name a model, such as models:/NAME@champion, or data with --data MD5")
    tracker = connect(Path.cwd())
    from mlflow.exceptions import MlflowException

    try:
        if data:
            _print_seen(*seen_by(tracker, data), data, json)
            return 0
        links = chain(tracker, model, Outside(commit, Objects(Path.cwd()).find))
    except MlflowException as error:
        raise UserError(f"{tracker.uri}: cannot be read ({brief(error)}); start the server and try again") from None
    if json:
        content = {"model": model, "links": [{**asdict(link), "state": link.state} for link in links]}
        print(json_text.dumps(content, indent=1))
    else:
        print("\n".join(as_text(links)))
    return 1 if any(link.remedy for link in links) else 0


def as_text(links: list[Link]) -> list[str]:
    """A line per link: state, what it is, its name, and where it was found or the remedy."""
    lines = []
    for link in links:
        what = f"  {link.what}" if link.member else link.what
        where = f"  {link.member}:" if link.member else ""
        lines.append(f"{link.state:8}{what:13}{where} {link.name} ({link.found or link.remedy})".rstrip())
    return lines


def commit(name: str) -> tuple[str, str]:
    """Whether the git repository of this code has a commit; (found, remedy)."""
    if name == UNKNOWN:
        return "", "nothing says it; train in a git checkout, or build the image with `make image`"
    if name.endswith("-changed"):
        return "", "files differed from that commit; commit the code before training"
    if not _git("rev-parse", "--git-dir"):
        return "", f"{CODE} is no git checkout; look in one"
    if not _git("cat-file", "-t", name):
        return "", "git does not know it; `git fetch --all`, or it was rebased away"
    return "in git", ""


class Objects:
    """Where what DVC knows by its md5 can be had: DVC's cache, this workspace's folders, a remote."""

    def __init__(self, root: Path) -> None:
        from dvc.exceptions import NotDvcRepoError
        from dvc.repo import Repo

        self.root = root
        try:
            self.repo: Any = Repo(str(root))
        except NotDvcRepoError:
            self.repo = None

    def find(self, md5: str, path: str) -> tuple[str, str]:
        """(where it is, "") or ("", the remedy). A folder counts when every file of it is there."""
        if self.repo is not None and _has(self.repo.cache.local, md5):
            return "in DVC's cache", ""
        place = self.root / path
        if place.exists() and dvc_md5(place) == md5:
            return "in its folder, not in DVC's cache", ""
        away = []
        for name in self.repo.config["remote"] if self.repo is not None else ():
            try:
                if _has(self.repo.cloud.get_remote_odb(name), md5):
                    return f"on the remote {name}; `dvc pull -r {name}` brings it", ""
            except Exception as error:  # a remote's errors are those of its file system
                away.append(f"remote {name} cannot be asked ({brief(error)})")
        return "", "; ".join([*away, _recorded(md5)])


def _has(odb: Any, md5: str) -> bool:
    if not odb.exists(md5):
        return False
    if not md5.endswith(".dir"):
        return True
    with odb.fs.open(odb.oid_to_path(md5)) as stream:
        files = {entry["md5"] for entry in json_text.load(stream)}
    return set(odb.oids_exist(files)) == files


def _recorded(md5: str) -> str:
    """The remedy for lost data: the commit that recorded them, where there is one."""
    found = _git("log", "-1", "--format=%h", f"-S{md5}", "--", "dvc.lock", "*.dvc", at=Path.cwd())
    where = f"git commit {found} recorded it: there " if found else ""
    return f"{where}`dvc pull` from a remote that has it, or make it again with `sixstream run`"


def _git(*arguments: str, at: Path = CODE) -> str:
    """What git answers, nothing where it fails."""
    done = subprocess.run(["git", "-C", str(at), *arguments], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""


def _print_seen(versions: list[Any], runs: list[Any], md5: str, json: bool) -> None:
    if not versions and not runs:
        raise UserError(f"--data {md5}: no model and no run saw it; the md5 stands in data/raw/NAME.dvc or dvc.lock")
    models = [f"models:/{version.name}/{version.version}" for version in versions]
    if json:
        listed = [{"run": run.info.run_id, "name": run.info.run_name} for run in runs]
        print(json_text.dumps({"data": md5, "models": models, "runs": listed}, indent=1))
        return
    print("\n".join([f"model  {uri}" for uri in models]))
    print("\n".join([f"run    {run.info.run_id} {run.info.run_name}" for run in runs]))
