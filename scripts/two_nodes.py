"""Run fit, test and predict as two nodes of one process each, and compare with one node.

Each node is a network namespace of its own with one address, and starts in a folder of its own. The nodes are launched
as ``torchrun`` does it and as SLURM's ``srun`` does it; test and predict run once with an output folder that both nodes
share and once without. Needs root on Linux (``ip netns``).

    python scripts/two_nodes.py --to /tmp/two_nodes
"""

import argparse
import csv
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import torch

ADDRESSES = ("10.77.0.1", "10.77.0.2")
NODES = ("dng-node-0", "dng-node-1")
PORT = "29511"
QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.logger=false"]
FIT = ["fit", "--config=digits.yaml", *QUIET, "--trainer.max_steps=12", "--trainer.callbacks=[{class_path: Export}]"]
SEEDS = ["--model.checkpoint=digits", "--model.forbidden=3", "--model.steps=5", "--data.num_samples=24"]
PREDICT = ["predict", *SEEDS, "--data.batch_size=4"]
TEST = ["test", *SEEDS, "--data.batch_size=4", "--trainer.callbacks.features=null"]
TWO = ["--trainer.num_nodes=2", "--trainer.devices=1", "--trainer.strategy=ddp", "--trainer.accelerator=cpu"]


def torchrun(node: int, job: int) -> tuple[list[str], dict[str, str]]:
    """The command that starts ``dng`` on a node with torchrun, and its environment."""
    where = [f"--master_addr={ADDRESSES[0]}", f"--master_port={int(PORT) + job}", f"--node_rank={node}"]
    return [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1", *where, "-m"], {}


def slurm(node: int, job: int) -> tuple[list[str], dict[str, str]]:
    """The command that ``srun`` starts on a node, and its environment."""
    variables = {
        "SLURM_JOB_ID": str(job),
        "SLURM_JOB_NAME": "dng",
        "SLURM_NTASKS": "2",
        "SLURM_NTASKS_PER_NODE": "1",
        "SLURM_NNODES": "2",
        "SLURM_PROCID": str(node),
        "SLURM_LOCALID": "0",
        "SLURM_NODEID": str(node),
        "SLURM_STEP_NODELIST": ",".join(ADDRESSES),
        "SLURM_JOB_NODELIST": ",".join(ADDRESSES),
        "MASTER_ADDR": ADDRESSES[0],
        "MASTER_PORT": str(int(PORT) + job),
    }
    return [sys.executable, "-m"], variables


LAUNCHERS = {"torchrun": torchrun, "slurm": slurm}


def connect() -> None:
    """Make the two namespaces, with a link between them."""
    disconnect()
    for node in NODES:
        _ip("netns", "add", node)
    _ip("link", "add", "dng0", "netns", NODES[0], "type", "veth", "peer", "name", "dng1", "netns", NODES[1])
    for number, (node, address) in enumerate(zip(NODES, ADDRESSES, strict=True)):
        _ip("-n", node, "addr", "add", f"{address}/24", "dev", f"dng{number}")
        for device in (f"dng{number}", "lo"):
            _ip("-n", node, "link", "set", device, "up")


def disconnect() -> None:
    """Remove the namespaces."""
    for node in NODES:
        subprocess.run(["ip", "netns", "del", node], capture_output=True, check=False)


def on_one(folder: Path, command: list[str]) -> None:
    """Run a command in one process."""
    folder.mkdir(parents=True)
    subprocess.run([sys.executable, "-m", "dng_lightning", *command], cwd=folder, check=True, capture_output=True)


def on_two(launcher: str, job: int, folders: list[Path], command: list[str]) -> list[subprocess.CompletedProcess[str]]:
    """Run a command on both nodes, each in its folder."""
    running = []
    for node, folder in enumerate(folders):
        folder.mkdir(parents=True, exist_ok=True)
        start, variables = LAUNCHERS[launcher](node, job)
        environment = os.environ | variables | {"GLOO_SOCKET_IFNAME": f"dng{node}", "OMP_NUM_THREADS": "1"}
        words = ["ip", "netns", "exec", NODES[node], *start, "dng_lightning", *command, *TWO]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        running.append(subprocess.Popen(words, cwd=folder, env=environment, text=True, **pipes))
    done = []
    for process in running:
        out, err = process.communicate(timeout=600)
        done.append(subprocess.CompletedProcess(process.args, process.returncode, out, err))
    return done


def weights(folder: Path) -> Mapping[str, torch.Tensor]:
    """The weights that a training exported."""
    return torch.load(folder / "model.ckpt", weights_only=True)["state_dict"]  # type: ignore[no-any-return]


def images(folder: Path) -> dict[str, bytes]:
    """The images that a prediction wrote, by name."""
    return {path.name: path.read_bytes() for path in folder.glob("0*.png")}


def rates(folder: Path) -> list[tuple[str, str]]:
    """Method and class counts of each row of an evaluation."""
    rows = csv.DictReader((folder / "results.csv").read_text().splitlines())
    return [(row["method"], row["class_counts"]) for row in rows]


def compare(to: Path) -> None:
    """Run everything, and print a line for each comparison."""
    on_one(to / "one", [*FIT, "--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.default_root_dir=fit"])
    for name, command in {"predict": PREDICT, "test": TEST}.items():
        on_one(to / f"one-{name}", [*command, "--trainer.default_root_dir=out"])
    job = 0
    for launcher in LAUNCHERS:
        nodes = [to / launcher / node for node in NODES]

        job += 1
        done = on_two(launcher, job, nodes, [*FIT, "--trainer.default_root_dir=fit"])
        assert not any(process.returncode for process in done), done
        expected, found = weights(to / "one" / "fit"), weights(nodes[0] / "fit")
        same = all(torch.equal(expected[name], weight) for name, weight in found.items())
        print(f"{launcher}: fit has the weights of two processes on one node: {same}", flush=True)
        assert same

        for name, command, result in (("predict", PREDICT, images), ("test", TEST, rates)):
            job += 1
            done = on_two(launcher, job, nodes, [*command, f"--trainer.default_root_dir={to / launcher / name}"])
            assert not any(process.returncode for process in done), done
            same = result(to / f"one-{name}" / "out") == result(to / launcher / name)
            print(f"{launcher}: {name} to a shared folder is that of one process: {same}", flush=True)
            assert same

            job += 1
            done = on_two(launcher, job, nodes, [*command, f"--trainer.default_root_dir={name}"])
            print(f"{launcher}: {name} to two folders: {last(done[0])}", flush=True)
            assert all(process.returncode for process in done), done
            assert not any(path.suffix == ".png" for node in nodes for path in (node / name).rglob("*"))


def last(done: subprocess.CompletedProcess[str]) -> str:
    """The error line of a process, else the last line that it printed."""
    errors = [line for line in done.stderr.splitlines() if "dng: error" in line]
    return errors[-1] if errors else (done.stdout or done.stderr).strip().splitlines()[-1]


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def main() -> None:
    """Run the comparison in new namespaces, which are removed at the end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, required=True, help="an empty folder for what the runs write")
    to = parser.parse_args().to.absolute()
    connect()
    try:
        compare(to)
    finally:
        disconnect()


if __name__ == "__main__":
    main()
