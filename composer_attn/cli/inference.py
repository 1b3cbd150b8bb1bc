"""The commands that use trained runs: evaluate, predict, heatmaps, export."""

from pathlib import Path
from typing import Annotated, Any

import typer

from composer_attn.cli.command import app, refusing

_Run = Annotated[
    Path, typer.Argument(readable=False, help="The run's folder, or one of its checkpoints.")
]
_Checkpoint = Annotated[str, typer.Option(help="best (of those kept), last, or a file.")]
_Data = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Other data: eval_dataset.root=photos/new, ..."),
]
_Json = Annotated[bool, typer.Option("--json", help="One JSON document.")]


@app.command()
def evaluate(
    run: _Run, data: _Data = None, checkpoint: _Checkpoint = "best", json: _Json = False
) -> None:
    """Evaluate a trained run on its evaluation data, or on other data."""
    with refusing():
        from composer.utils import dist

        from composer_attn.runs.inference import load_run
        from composer_attn.runs.inference.evaluate import evaluate as measure

        done = measure(load_run(run, checkpoint=checkpoint, overrides=data or []))
    if dist.get_global_rank() == 0:
        print(done.as_json() if json else done.as_text())


@app.command()
def predict(
    source: Annotated[
        Path,
        typer.Argument(
            readable=False, help="A run's folder, its checkpoint, or a file exported from it."
        ),
    ],
    images: Annotated[list[Path], typer.Argument(readable=False, help="Image files.")],
    top: Annotated[
        int | None, typer.Option(help="How many classes of an image to show; default: 5.")
    ] = None,
    least_score: Annotated[
        float | None, typer.Option(help="The least score of objects to show; default: 0.5.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "--output", help="The folder to write masks to.")
    ] = None,
    checkpoint: _Checkpoint = "best",
    json: _Json = False,
) -> None:
    """Print the most probable classes of images, or the objects in them; write masks."""
    with refusing():
        from composer_attn.runs.inference import load_run
        from composer_attn.runs.inference.exported_model import is_exported, open_exported
        from composer_attn.runs.inference.predict import as_json
        from composer_attn.runs.inference.predict_any import predict_any

        loaded = (
            open_exported(source)
            if is_exported(source)
            else load_run(source, checkpoint=checkpoint)
        )
        predictions = predict_any(loaded, images, top=top, least_score=least_score, out=out)
    print(as_json(predictions) if json else "\n".join(map(str, predictions)))


@app.command()
def heatmaps(
    runs: Annotated[
        list[Path], typer.Argument(readable=False, help="Folders of runs, or their checkpoints.")
    ],
    images: Annotated[Path, typer.Option(readable=False, help="A folder of images, or one image.")],
    layer: Annotated[
        str | None,
        typer.Option(help="The layer to map; default: the last with more than one position."),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", "--output", help="The folder to write the pictures to.")
    ] = Path("heat_maps"),
    checkpoint: _Checkpoint = "best",
    json: _Json = False,
) -> None:
    """Draw what trained runs look at in images, side by side (Grad-CAM)."""
    with refusing():
        from composer_attn.runs.heatmaps.of_files import as_json, write_heat_maps

        pictures = write_heat_maps(runs, images, out, layer, checkpoint)
    print(as_json(pictures) if json else "\n".join(map(str, pictures)))


@app.command()
def export(
    run: _Run,
    data: _Data = None,
    to: Annotated[str, typer.Option(help="onnx, torch_export, torchscript or openvino.")] = "onnx",
    out: Annotated[
        Path | None, typer.Option(help="The file; by default model.onnx, ... in the run's folder.")
    ] = None,
    samples: Annotated[
        int | None, typer.Option(help="How many evaluation images to compare on; default: all.")
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(help="Accepted difference, relative to the largest output; default: 1e-4."),
    ] = None,
    fold: Annotated[bool, typer.Option(help="Fold the norms into the convolutions first.")] = True,
    dynamic_size: Annotated[
        bool, typer.Option("--dynamic-size", help="Accept images of any size, where possible.")
    ] = False,
    int8: Annotated[
        bool, typer.Option("--int8", help="Quantize to eight-bit integers (not torchscript).")
    ] = False,
    calibration_images: Annotated[
        int | None,
        typer.Option(help="Training images to calibrate --int8 with; default: 128."),
    ] = None,
    accuracy_drop: Annotated[
        float | None, typer.Option(help="Accepted loss of accuracy with --int8; default: 0.01.")
    ] = None,
    agreement: Annotated[
        float | None,
        typer.Option(
            help="Accepted share of images with the same class with --int8; default: 0.95."
        ),
    ] = None,
    checkpoint: _Checkpoint = "best",
    json: _Json = False,
) -> None:
    """Export a trained run; keep the file only if it computes the same on evaluation data."""
    with refusing():
        from composer_attn.errors import ArgumentError
        from composer_attn.runs.inference import load_run
        from composer_attn.runs.inference.export import export as write
        from composer_attn.runs.inference.int8 import Int8

        settings: dict[str, Any] = {
            "calibration_images": calibration_images,
            "accuracy_drop": accuracy_drop,
            "agreement": agreement,
        }
        given = {name: value for name, value in settings.items() if value is not None}
        if given and not int8:
            option = next(iter(given)).replace("_", "-")
            raise ArgumentError(f"--{option} applies to quantization only: add --int8")
        chosen = Int8(**given) if int8 else None
        loaded = load_run(run, checkpoint=checkpoint, overrides=data or [])
        path, card = write(
            loaded, to, out, samples, tolerance, fold, int8=chosen, dynamic_size=dynamic_size
        )
    print(card.as_json() if json else f"{path}\n{card.as_text()}")
