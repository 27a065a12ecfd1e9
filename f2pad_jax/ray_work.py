"""Picture files over the machines of a Ray cluster: the same function, mapped over their list by Ray Data."""

from __future__ import annotations

import json
import logging
import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from f2pad_jax.errors import InputError, InputWarning
from f2pad_jax.output import write_bytes
from f2pad_jax.picture_jobs import Facts, Finish, Job, Picture, groups_of, segment_group, write_found

PARQUET = "results.parquet"
PREPARE = "f2pad_jax.startup.prepare_jax"  # runs in each process before it imports anything else
ROUNDS = 4  # groups of each worker: they end at about the same time, and a worker that dies loses one
TRIES = 3  # a worker that dies is started again so many times
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal", "RAY_DATA_DISABLE_PROGRESS_BARS": "1"}


class Share(NamedTuple):
    """What a worker has of the cluster: cores, and accelerators."""

    cores: int
    accelerators: int


def segment_on_ray(job: Job, pictures: Sequence[Picture], finish: Finish, *, workers: int | None = None) -> None:
    """Segments pictures by the workers of a Ray cluster, each of which writes its results into the job's folder.

    All machines see the pictures, the maps and the results under the same paths. The cluster is the one that
    `ray.init` finds, by `RAY_ADDRESS` or on this machine; without one, this machine becomes a cluster for the time of
    the call. A worker that dies is started again and does its group again: results are those of one machine with as
    many devices as a worker has.

    Args:
      job: what all pictures share.
      pictures: the picture files.
      finish: called here with each picture that is done.
      workers: processes that share the cores of the cluster; by default one for each accelerator, or where there is
        none, one for each machine.

    Raises:
      InputError: Ray is not installed, there are fewer cores than workers, or a worker died again and again.
    """
    os.environ.update({name: text for name, text in QUIET.items() if name not in os.environ})
    try:
        import ray  # pyright: ignore[reportMissingImports]
        import ray.data  # pyright: ignore[reportMissingImports]
        from ray.exceptions import RayError  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise InputError("--ray needs Ray", hint="pip install 'f2pad-jax[ray]'") from error
    if not pictures:
        return
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    mine = not ray.is_initialized()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what Ray says of itself, and of the processes that it starts
        warnings.simplefilter("always", InputWarning)
        if mine:
            own = {"worker_process_setup_hook": PREPARE}
            ray.init(logging_level=logging.ERROR, log_to_driver=False, include_dashboard=False, runtime_env=own)
        try:
            ray.data.DataContext.get_current().enable_progress_bars = False
            number, share = shares(ray.cluster_resources(), len(ray.nodes()), workers)
            blocks = [_block(each) for each in pieces(job, pictures, number, share)]
            found = ray.data.from_blocks(blocks).map_batches(
                Worker,
                fn_constructor_args=(job, list(pictures), os.getcwd()),
                batch_size=None,
                compute=ray.data.ActorPoolStrategy(size=number),
                num_cpus=share.cores,
                num_gpus=share.accelerators,
                runtime_env={"env_vars": {"JAX_NUM_CPU_DEVICES": str(share.cores)}},
                ray_remote_args_fn=lambda: {"max_restarts": TRIES, "max_task_retries": TRIES},  # else without end
            )
            for row in found.iter_rows():
                for told in json.loads(row["warnings"]):
                    warnings.warn(InputWarning(**told), stacklevel=2)
                finish(int(row["index"]), json.loads(row["facts"]))
        except RayError as error:
            hint = "--resume goes on with what is missing"
            raise InputError(f"the cluster gave up ({error})", hint=hint) from error
        finally:
            if mine:
                ray.shutdown()


def shares(resources: Mapping[str, float], machines: int, workers: int | None) -> tuple[int, Share]:
    """How many workers there are, and what each has.

    Args:
      resources: of the whole cluster, as Ray names them.
      machines: how many it has.
      workers: that were asked for.

    Raises:
      InputError: more were asked for than there are cores, or accelerators.

    Examples:
      >>> shares({"CPU": 16, "GPU": 2}, 1, None)
      (2, Share(cores=8, accelerators=1))
      >>> shares({"CPU": 16}, 2, 8)
      (8, Share(cores=2, accelerators=0))
    """
    cores, accelerators = int(resources.get("CPU", 1)), int(resources.get("GPU", 0))
    number = workers or accelerators or machines
    most = accelerators or cores
    if number > most:
        kind = "accelerators" if accelerators else "cores"
        raise InputError(f"{number} workers are more than the cluster's {most} {kind}", hint="lower --workers")
    return number, Share(max(1, cores // number), min(1, accelerators))


def pieces(job: Job, pictures: Sequence[Picture], workers: int, share: Share) -> Iterator[range]:
    """Indices of pictures that a worker does together: a group, or less where all workers shall have some."""
    most = max(share.cores, math.ceil(len(pictures) / (ROUNDS * workers)))
    for group in groups_of(job, pictures):
        for first in range(group.start, group.stop, most):
            yield range(first, min(first + most, group.stop))


def write_parquet(path: Path, records: Sequence[Facts]) -> None:
    """Writes the records of pictures as one Parquet table, a column for each key and a row for each picture.

    Raises:
      InputError: the file cannot be written.
    """
    import pyarrow as pa  # pyright: ignore[reportMissingImports]
    import pyarrow.parquet  # pyright: ignore[reportMissingImports]

    keys = dict.fromkeys(key for record in records for key in record)
    table = pa.Table.from_pylist([{key: _encodable(record.get(key)) for key in keys} for record in records])
    sink = pa.BufferOutputStream()
    pyarrow.parquet.write_table(table, sink)
    write_bytes(path, sink.getvalue().to_pybytes())


def _encodable(value: Any) -> Any:
    """A value of a record; Parquet has no names that are no UTF-8, so their bytes are spelt out."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {key: _encodable(each) for key, each in value.items()}
    return [_encodable(each) for each in value] if isinstance(value, list) else value


def _block(indices: range) -> Any:
    import pandas as pd  # pyright: ignore[reportMissingImports]

    return pd.DataFrame({"index": list(indices)})


class Worker:
    """A process of the cluster."""

    def __init__(self, job: Job, pictures: Sequence[Picture], folder: str) -> None:
        """Goes to the folder that names of files are relative to."""
        os.chdir(folder)
        self.job, self.pictures = job, pictures

    def __call__(self, rows: dict[str, Any]) -> dict[str, Any]:
        """Segments pictures by their indices; their facts and what there is to tell are JSON, which keeps any name."""
        indices = [int(index) for index in rows["index"]]
        group = [self.pictures[index] for index in indices]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", InputWarning)
            found = {each.place: each for each in segment_group(self.job, group)}
            facts = [write_found(self.job, picture, found[place]) for place, picture in enumerate(group)]
        told = [each.message for each in caught if isinstance(each.message, InputWarning)]
        lines = [{"what": each.what, "where": each.where and str(each.where), "hint": each.hint} for each in told]
        return {
            "index": indices,
            "facts": [json.dumps(each) for each in facts],
            "warnings": [json.dumps(lines if place == 0 else []) for place in range(len(indices))],
        }
