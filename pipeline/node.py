"""One node of a training on several: fetch the inputs, run the command by torchrun, put the output back.

Kubeflow Trainer tells torchrun by PET_… variables how many nodes there are and which this one is.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from components.facts import FACTS
from components.files import read_json, write_json
from components.storage import fetch, put
from model.errors import Stopped, UserError
from pipeline.trainjob import LOST, NODE


def main() -> int:
    """Run the command of the variable SIXSTREAM_NODE; its exit code as the verb has it, not torchrun's."""
    order = json.loads(os.environ[NODE])
    with tempfile.TemporaryDirectory(prefix="sixstream-") as scratch:
        folder = Path(scratch)
        facts, code = folder / ".facts.json", folder / ".code"
        try:
            for path, md5 in order["files"].items():
                fetch(f"{order['place']}/in/{path}", folder / path, md5)
            words = order["command"].split()
            assert words[0] == "sixstream"
            environment = {**os.environ, FACTS: str(facts), "SIXSTREAM_EXIT_CODE": str(code)}
            run = [sys.executable, "-m", "torch.distributed.run", "-m", "pipeline.node", "--rank", *words[1:]]
            ended = subprocess.run(run, cwd=folder, env=environment).returncode
            if ended:
                return int(code.read_text()) if code.exists() else ended
            out = folder / order["out"]
            if out.exists():  # the node of rank 0
                md5 = put(out, f"{order['place']}/out")
                write_json(folder / ".result.json", {"md5": md5, "facts": read_json(facts) if facts.exists() else {}})
                put(folder / ".result.json", f"{order['place']}/result.json")
        except UserError as error:
            print(f"sixstream: {error}", file=sys.stderr)
            return 2
        except Stopped as stopped:
            print(f"sixstream: {stopped}", file=sys.stderr)
            return LOST
    return 0


def rank(arguments: list[str]) -> int:
    """Run a verb as one of torchrun's processes, and leave its exit code where torchrun does not pass it on."""
    from pipeline.cli import main as verb

    code = verb(arguments)
    if code:
        Path(os.environ["SIXSTREAM_EXIT_CODE"]).write_text(str(code))
    return code


if __name__ == "__main__":
    sys.exit(rank(sys.argv[2:]) if sys.argv[1:2] == ["--rank"] else main())
