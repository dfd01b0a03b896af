"""The command line `sixstream VERB`: every component is one verb, its options are the function's parameters.

Mistakes a user can mend end with their message and exit code 2; nothing else prints a traceback by design.
"""

import argparse
import importlib
import inspect
import os
import sys
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

from model.errors import Stopped, UserError
from model.stopping import end_with_starter

STOPPED = 75  # of sysexits: a temporary failure, try again

# verb → "module:function". Modules are imported only for the verb that runs: torch and mlflow cost seconds.
VERBS = {
    "sample-data": "components.sample_data:sample",
    "entry": "pipeline.catalogue:entry",
    "data-import": "pipeline.data:import_data",
    "data-check": "pipeline.data:check",
    "data-diff": "pipeline.data:diff",
    "preprocess": "components.preprocess:preprocess",
    "train": "components.train:train",
    "evaluate": "components.evaluate:evaluate",
    "ensemble": "components.ensemble:ensemble",
    "report": "components.report:report",
    "register": "components.register:register",
    "zoo": "components.zoo:zoo",
    "predict": "components.predict:predict",
    "explain": "components.explain:explain",
    "info": "components.info:info",
    "checkpoint-import": "components.checkpoints:import_checkpoint",
    "checkpoint-export": "components.checkpoints:export_checkpoint",
    "scores-import": "components.score_files:import_scores",
    "scores-export": "components.score_files:export_scores",
    "scores-fuse": "components.score_files:fuse_scores",
    "run": "pipeline.run:run",
    "results": "pipeline.run:results",
    "recipes": "pipeline.listing:recipes",
    "reproduce": "pipeline.reproduce:reproduce",
    "workspace": "pipeline.workspace:workspace",
    "ablate": "pipeline.ablate:ablate",
    "compare": "components.compare:compare",
    "tune": "components.tune:tune",
    "sample-study": "pipeline.study:sample_study",
    "kfp-compile": "pipeline.kubeflow:kfp_compile",
    "kfp-run": "pipeline.kubeflow_local:kfp_run",
    "kfp-lint": "pipeline.kubeflow:kfp_lint",
    "kfp-submit": "pipeline.kubeflow_submit:kfp_submit",
    "kfp-status": "pipeline.kubeflow_submit:kfp_status",
    "kfp-logs": "pipeline.kubeflow_submit:kfp_logs",
    "kfp-doctor": "pipeline.kubeflow_doctor:kfp_doctor",
    "images-build": "pipeline.images:images_build",
    "images-push": "pipeline.images:images_push",
    "images-digest": "pipeline.images:images_digest",
    "lineage": "pipeline.lineage:lineage",
    "tracking-sync": "components.tracking:sync",
    "umurl-pretrain": "components.umurl_pretrain:umurl_pretrain",
    "umurl-features": "components.umurl_features:umurl_features",
    "umurl-linear": "components.umurl_linear:umurl_linear",
    "umurl-retrieve": "components.umurl_retrieve:umurl_retrieve",
    "umurl-plot": "components.umurl_plot:umurl_plot",
    "umurl": "pipeline.umurl:umurl",
}

SUMMARIES = {
    "sample-data": "write raw NTU-format clips of synthetic actions",
    "entry": "write a dataset's entry with its named recipe written out",
    "data-import": "bring raw data in, track them, print their entry of params.yaml (also: data import)",
    "data-check": "look at data before training on them (also: data check)",
    "data-diff": "compare two versions of a dataset (also: data diff)",
    "preprocess": "read, check and pack the raw files of a dataset",
    "train": "train one member",
    "evaluate": "score one member's checkpoints on every split",
    "ensemble": "fuse the members' scores",
    "report": "write the report page, tables and figures",
    "register": "register members and the ensemble, move the champion",
    "zoo": "write the table of registered models: accuracy, size, checkpoint, log",
    "predict": "classify raw clips with a registered model",
    "explain": "draw what a trained member has learned and what its answers rest on",
    "info": "print what a network costs: parameters, multiply-accumulates, time",
    "checkpoint-import": "turn an original checkpoint into ours and register it (also: checkpoint import)",
    "checkpoint-export": "write a checkpoint with the originals' tensor names (also: checkpoint export)",
    "scores-import": "read a result file of ProtoGCN, PYSKL or MMAction2 as a score table (also: scores import)",
    "scores-export": "write a score table as such a result file (also: scores export)",
    "scores-fuse": "fuse score tables, ours and imported ones (also: scores fuse)",
    "run": "run the whole pipeline through DVC, members side by side if asked",
    "results": "print the results table of the last run",
    "recipes": "list the released recipes, or print the parameters of one",
    "reproduce": "compare weights, given or trained, with a recipe's published figures",
    "workspace": "make a scratch workspace for another dataset",
    "ablate": "train every cell of a named grid from several seeds and compare them",
    "compare": "say which of several runs is better, and in which classes",
    "tune": "search the declared ranges for better parameters, on the development split",
    "sample-study": "run the pipeline on several seeds of the sample data",
    "kfp-compile": "write the pipeline as a package for Kubeflow (also: kfp compile)",
    "kfp-run": "run that package on this machine by kfp's own runner (also: kfp run)",
    "kfp-lint": "say what would break on a cluster in a package (also: kfp lint)",
    "kfp-submit": "send the pipeline to a Kubeflow server, follow its run (also: kfp submit)",
    "kfp-status": "print the state of a run and its tasks (also: kfp status)",
    "kfp-logs": "print what a run's tasks have printed (also: kfp logs)",
    "kfp-doctor": "say whether a cluster has what a run needs (also: kfp doctor)",
    "images-build": "build a container image and say how large it is (also: images build)",
    "images-push": "push an image to a registry and print its digest (also: images push)",
    "images-digest": "print an image's name by digest (also: images digest)",
    "lineage": "say which data, code and runs a model comes from, and which models saw given data",
    "tracking-sync": "deliver metrics kept back while the tracking server was away (also: tracking sync)",
    "umurl-pretrain": "pre-train an encoder without labels",
    "umurl-features": "compute a pre-trained encoder's features of every clip",
    "umurl-linear": "linear evaluation of all encoders' features",
    "umurl-retrieve": "retrieval by all encoders' features",
    "umurl-plot": "draw features of ten classes in two dimensions",
    "umurl": "run all of UmURL through DVC and print its results",
}


def main(arguments: list[str] | None = None) -> int:
    """Run one verb. Returns the exit code: 0, 2 for a mistake of the user's, STOPPED after SIGTERM or Ctrl-C."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if "-".join(arguments[:2]) in VERBS:  # `checkpoint import` for `checkpoint-import`
        arguments[:2] = ["-".join(arguments[:2])]
    parser = argparse.ArgumentParser(prog="sixstream", description="Skeleton action recognition in six streams.")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    chosen = next((a for a in arguments if not a.startswith("-")), None)
    function: Callable[..., Any] | None = None
    for verb, summary in SUMMARIES.items():
        sub = verbs.add_parser(verb, help=summary, description=summary)
        if verb == chosen:
            function = load_function(VERBS[verb])
            add_options(sub, function)
    options = vars(parser.parse_args(arguments))
    options.pop("verb")
    assert function is not None
    if "DVC_STAGE" in os.environ:  # or a stage would outlive a killed DVC, which would start it a second time
        end_with_starter()
    try:
        result = call(function, options)
    except UserError as error:
        print(f"sixstream: {error}", file=sys.stderr)
        return 2
    except Stopped as stopped:
        print(f"sixstream: {stopped}", file=sys.stderr)
        return STOPPED
    except BrokenPipeError:
        # The reader, such as `head`, has seen enough; Python must not fail again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        print("sixstream: interrupted", file=sys.stderr)
        return 130
    # Components answer with what they made, the pipeline's own verbs with an exit code.
    return result if type(result) is int else 0


def load_function(target: str) -> Callable[..., Any]:
    """Import `module:function`."""
    module, name = target.split(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return function


def add_options(parser: argparse.ArgumentParser, function: Callable[..., Any]) -> None:
    """One option per parameter of `function`, an argument without a flag where the function takes it by position."""
    hints = typing.get_type_hints(function)
    for name, parameter in inspect.signature(function).parameters.items():
        flag = "--" + name.replace("_", "-")
        help_text = describe(function, name)
        if name == "params":
            parser.add_argument(flag, default="params.yaml", help=f"{help_text} (default: params.yaml)")
            continue
        kind, many = plain_type(hints[name])
        required = parameter.default is inspect.Parameter.empty
        if parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
            nargs = "+" if many else None if required else "?"
            default = None if required else parameter.default
            parser.add_argument(name, nargs=nargs, type=kind, default=default, help=help_text)
        elif kind is bool:
            parser.add_argument(flag, action="store_true", help=help_text)
        else:
            shown = "" if required or parameter.default in (None, "") else f" (default: {parameter.default})"
            parser.add_argument(
                *(["-o", flag] if name == "out" else [flag]),
                type=kind,
                nargs="+" if many else None,
                required=required,
                default=None if required else parameter.default,
                help=help_text + shown,
            )


def call(function: Callable[..., Any], options: dict[str, Any]) -> Any:
    """Call `function` with parsed options; `params` is the path of parameters, which are read here."""
    if "params" in options:
        from pipeline.catalogue import load_expanded

        path = Path(options["params"])
        optional = not path.exists() and type(None) in typing.get_args(typing.get_type_hints(function)["params"])
        options = {**options, "params": None if optional else load_expanded(path)}
    parameters = inspect.signature(function).parameters.values()
    first = [options.pop(p.name) for p in parameters if p.kind is inspect.Parameter.POSITIONAL_ONLY]
    return function(*first, **options)


def plain_type(hint: Any) -> tuple[Callable[[str], Any], bool]:
    """(type of one value, whether there may be several) of an annotation such as `Path | None` or `list[str]`."""
    if isinstance(hint, types.UnionType):
        return plain_type(next(part for part in hint.__args__ if part is not type(None)))
    if typing.get_origin(hint) is list:
        return typing.get_args(hint)[0], True
    if typing.get_origin(hint) is typing.Literal:
        return str, False
    return hint, False


def describe(function: Callable[..., Any], name: str) -> str:
    """The line about an argument in the `Args:` part of a docstring."""
    for line in (inspect.getdoc(function) or "").splitlines():
        if line.strip().startswith(f"{name}:"):
            return line.split(":", 1)[1].strip().replace("%", "%%")
    return "the parameters" if name == "params" else ""


if __name__ == "__main__":
    sys.exit(main())
