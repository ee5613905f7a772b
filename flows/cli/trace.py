"""The verbs that follow a derived series back, and show what was made of it."""

import base64
import os
import sys
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.options import Home, Json, enter, leave, quiet, require
from flows.operations import home as homes

if TYPE_CHECKING:
    from PIL import Image

Model = Annotated[str, typer.Option("--model", help="champion, a version, or starter.")]


def explain(
    file: Annotated[Path, typer.Argument(help="A DICOM file that HQINet made.")],
    home: Home = homes.DEFAULT,
    as_json: Json = False,
) -> None:
    """Follow a restored image back to its source, its model, and that model's training data."""
    require(home)
    enter(home)
    from flows import trace
    from flows.cli import trace_output
    from flows.cli.output import answer

    with quiet():
        explained = trace.explain(file).model_dump()
    answer(explained, trace_output.print_explanation, as_json=as_json)


def replay(
    place: Annotated[Path, typer.Argument(help="A restored file, or a folder of such series.")],
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    home: Home = homes.DEFAULT,
    as_json: Json = False,
) -> None:
    """Restore again from the source, and compare pixels; exits 3 unless all are the same."""
    require(home)
    enter(home)
    from flows import trace
    from flows.cli import trace_output
    from flows.cli.output import answer

    with quiet():
        result = {"series": [row.model_dump() for row in trace.replay(place, device)]}
    answer(result, trace_output.print_replayed, as_json=as_json)
    leave(refused=any(row["outcome"] != "same" for row in result["series"]))


def recall(
    model: Annotated[str, typer.Option(help="Version number, or starter.")],
    home: Home = homes.DEFAULT,
    as_json: Json = False,
) -> None:
    """List every series that a model version has made, and where it was written."""
    require(home)
    enter(home)
    from flows import trace
    from flows.cli import trace_output
    from flows.cli.output import answer

    result = {"model": model, "series": [row.model_dump() for row in trace.recall(model)]}
    answer(result, trace_output.print_recalled, as_json=as_json)


def show(
    what: Annotated[
        str,
        typer.Argument(
            metavar="SERIES|PATIENT",
            help="Folder, file or UID of a restored series, or a patient of the dataset.",
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="PNG to write; default: the terminal.")] = None,
    model: Model = "champion",
    home: Home = homes.DEFAULT,
) -> None:
    """Show low dose, restored, full dose and difference of a middle slice, in its window."""
    require(home)
    enter(home)
    from flows.cli.output import print_line
    from flows.show import show as picture

    with quiet():
        image = picture(what, model)
    if out is None and (inline := _inline(image)):
        sys.stdout.write(inline + "\n")
        return
    out = out or Path(f"{Path(what).name}.png")
    image.save(out, format="PNG")
    print_line(f"picture: {out}")


def _inline(image: "Image.Image") -> str:
    """The escape sequence that shows a picture on this terminal; empty where none is known."""
    if not sys.stdout.isatty():
        return ""
    content = BytesIO()
    image.save(content, format="PNG")
    text = base64.b64encode(content.getvalue()).decode()
    if os.environ.get("TERM_PROGRAM") in ("iTerm.app", "WezTerm"):
        return f"\033]1337;File=inline=1:{text}\a"
    if "KITTY_WINDOW_ID" in os.environ or os.environ.get("TERM") == "xterm-ghostty":
        # The protocol takes 4096 characters at once; m=1: more follow.
        parts = [text[start : start + 4096] for start in range(0, len(text), 4096)]
        keys = ["a=T,f=100,m=1", *["m=1"] * (len(parts) - 1)]
        keys[-1] = keys[-1].replace("m=1", "m=0")
        return "".join(f"\033_G{k};{part}\033\\" for k, part in zip(keys, parts, strict=True))
    return ""
