"""The lab's transformer of text against plain loops, at the size of nanoGPT's CPU example.

Four layers, four heads, width 128, context 64, batches of 12, no dropout, AdamW at a constant rate; each in a process
of its own, in turn. `published` is nanoGPT's way: its network (learned positions, GELU, the table of symbols tied to
the logits), batches cut from a file that is mapped anew each time, AdamW in two groups as it comes, gradients clipped,
`loss.item()` at every step. The network is written out here, or with --nanogpt FOLDER that of a checkout of
github.com/karpathy/nanoGPT is imported. `plain` is such a loop around the lab's own network. `lab` is the lab's Trainer
as `python -m lab experiment=transformer_text` builds it, with all default logging: products of matrices go through
oneDNN in place of MKL, `model.matmul=medium`, and the maps of attention are written out. Where the processor has no AMX
these are products of float32 all the same (the table says by how much they differ). `lab, MKL` has
`model.matmul=highest model.net.fused=true`. `lab, bfloat16`, where the processor multiplies that, has
`trainer.precision=bf16-mixed`: products of bfloat16, weights and everything else in float32.

How to read it: `ratio` is tokens a second over those of `published` in the same repeat; the goal is 1.3. The last
column is the loss of the same text held out after the same number of steps.

--text names a text file; without it the lab's own source is the text.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scripts.bench import _common as common
    from scripts.bench import loop
else:
    import _common as common
    import loop

BATCH, CONTEXT, LAYERS, HEADS, WIDTH, VOCABULARY = 12, 64, 4, 4, 128, 128
RATE, BETAS, DECAY = 1e-3, (0.9, 0.99), 0.1
BFLOAT16 = "lab, bfloat16"
LAB = {
    "lab": [],
    "lab, MKL": ["model.matmul=highest", "model.net.fused=true"],
    BFLOAT16: ["trainer.precision=bf16-mixed"],
}


def config(text: Path, steps: int, *more: str) -> Any:
    """The frozen config of so many steps of `transformer_text`, at a rate that stays."""
    constant = ["model.scheduler=null", f"model.optimizer.lr={RATE}"]
    return loop.frozen(["experiment=transformer_text", f"data.path={text}", *constant, *more], steps, 50)


def own_source(path: Path, most: int | None = None) -> None:
    """Write the lab's own source and pages as one text of at most so many characters, what is not ASCII left out."""
    root = Path(__file__).parents[2]
    files = sorted([*root.glob("src/lab/**/*.py"), *root.glob("experiments/*/README.md"), *root.glob("docs/*.md")])
    text = "\n".join(f.read_text(encoding="utf-8").encode("ascii", "ignore").decode() for f in files)
    path.write_text(text[:most])


def published_network(checkout: str) -> Any:
    """nanoGPT's network, of a checkout or written out, as (inputs, targets) → loss."""
    import torch
    from torch import nn
    from torch.nn import functional

    if checkout:
        sys.path.insert(0, checkout)
        import model as nanogpt  # type: ignore[import-not-found]

        size = {"block_size": CONTEXT, "vocab_size": VOCABULARY, "n_layer": LAYERS, "n_head": HEADS, "n_embd": WIDTH}
        net = nanogpt.GPT(nanogpt.GPTConfig(**size, dropout=0.0, bias=False))
        net.loss = lambda x, y: net(x, y)[1]
        return net

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ln_1, self.ln_2 = (nn.LayerNorm(WIDTH, bias=False) for _ in range(2))
            self.c_attn = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
            self.c_proj = nn.Linear(WIDTH, WIDTH, bias=False)
            self.c_fc = nn.Linear(WIDTH, 4 * WIDTH, bias=False)
            self.mlp_proj = nn.Linear(4 * WIDTH, WIDTH, bias=False)
            self.gelu = nn.GELU()

        def forward(self, x: Any) -> Any:
            b, t, c = x.size()
            q, k, v = (
                part.view(b, t, HEADS, c // HEADS).transpose(1, 2) for part in self.c_attn(self.ln_1(x)).split(c, 2)
            )
            y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.c_proj(y.transpose(1, 2).contiguous().view(b, t, c))
            return x + self.mlp_proj(self.gelu(self.c_fc(self.ln_2(x))))

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wte, self.wpe = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(CONTEXT, WIDTH)
            self.h = nn.ModuleList(Block() for _ in range(LAYERS))
            self.ln_f = nn.LayerNorm(WIDTH, bias=False)
            self.lm_head = nn.Linear(WIDTH, VOCABULARY, bias=False)
            self.wte.weight = self.lm_head.weight
            for name, p in self.named_parameters():
                if p.dim() > 1:
                    std = 0.02 / (math.sqrt(2 * LAYERS) if name.endswith("proj.weight") else 1)
                    nn.init.normal_(p, mean=0.0, std=std)

        def loss(self, x: Any, y: Any) -> Any:
            hidden = self.wte(x) + self.wpe(torch.arange(x.size(1)))
            for block in self.h:
                hidden = block(hidden)
            logits = self.lm_head(self.ln_f(hidden))
            return functional.cross_entropy(logits.view(-1, VOCABULARY), y.view(-1))

    return Network()


class Loop:
    """A loop as one writes it by hand, around the published network or the lab's."""

    def __init__(self, text: Path, net: Any, folder: Path) -> None:
        import torch

        self.data, model = loop.instantiated(config(text, 1))
        self.net = net
        if net is None:
            from lab.models.next_token import losses

            self.net = model.net
            self.net.loss = lambda x, y: losses(self.net, torch.cat([x, y[:, -1:]], 1)).mean()
        self.file = folder / f"train-{os.getpid()}.bin"
        self.data.train.numpy().astype("uint16").tofile(self.file)
        decayed = [p for p in self.net.parameters() if p.dim() >= 2]
        others = [p for p in self.net.parameters() if p.dim() < 2]
        groups = [{"params": decayed, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=RATE, betas=BETAS)

    def batch(self) -> tuple[Any, Any]:
        """As nanoGPT's `get_batch`."""
        import numpy as np
        import torch

        data = np.memmap(self.file, dtype=np.uint16, mode="r")
        places = torch.randint(len(data) - CONTEXT, (BATCH,)).tolist()
        x, y = (
            torch.stack([torch.from_numpy(data[i + shift : i + shift + CONTEXT].astype(np.int64)) for i in places])
            for shift in (0, 1)
        )
        return x, y

    def train(self, steps: int) -> float:
        import torch

        started = time.perf_counter()
        for _ in range(steps):
            x, y = self.batch()
            loss = self.net.loss(x, y)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            loss.item()
        return time.perf_counter() - started

    def held_out(self, windows: int) -> float:
        import torch

        with torch.no_grad():
            parts = self.data.held_out(windows).split(50)
            total = sum(
                len(part) * float(self.net.loss(part[:, :-1].contiguous(), part[:, 1:].contiguous())) for part in parts
            )
        return total / sum(map(len, parts))


class Lab:
    """The lab's Trainer; every call trains from the start."""

    def __init__(self, text: Path, more: list[str]) -> None:
        self.text, self.more = text, more
        self.data, self.model = loop.instantiated(config(text, 1, *more))
        self.net = self.model.net

    def train(self, steps: int) -> float:
        import torch

        outcome = loop.lab(config(self.text, steps, *self.more))
        with torch.no_grad():
            for parameter, value in zip(self.model.parameters(), outcome.weights, strict=True):
                parameter.copy_(value)
        return outcome.seconds

    def held_out(self, windows: int) -> float:
        from lab.models.next_token import held_out_losses

        return float(held_out_losses(self.net, self.data.held_out(windows)).mean())


def rounding() -> float:
    """The greatest error of a product of standard normal 768×128 and 128×512 matrices, against float64."""
    import torch

    draw = torch.Generator().manual_seed(0)
    a, b = (torch.randn(*shape, generator=draw) for shape in ((768, 128), (128, 512)))
    return float((a @ b - (a.double() @ b.double())).abs().max())


def work(name: str, text: Path, checkout: str, folder: Path, threads: int) -> None:
    """A worker: answers lines `train STEPS`, `loss WINDOWS` and `rounding` on standard output."""
    import torch

    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what is printed elsewhere goes to standard error
    loop.prepare(threads)
    torch.manual_seed(1337)
    worker: Any
    if name.startswith("lab"):
        worker = Lab(text, LAB[name])
    else:
        worker = Loop(text, published_network(checkout) if name == "published" else None, folder)
    print(json.dumps(sum(p.numel() for p in worker.net.parameters())), file=out, flush=True)
    for line in sys.stdin:
        verb, *numbers = line.split()
        verbs = {"train": worker.train, "loss": worker.held_out, "rounding": rounding}
        print(json.dumps(verbs[verb](*map(int, numbers))), file=out, flush=True)


def measure(text: Path, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Print tokens a second and losses; returns the samples."""
    import torch

    steps, windows = (2, 20) if options.quick else (100, 1000)
    names = [name for name in ("published", "plain", *LAB) if name != BFLOAT16 or torch.cpu._is_avx512_bf16_supported()]
    places = [str(text), options.nanogpt or "", str(folder), str(options.threads)]
    workers = {name: common.Worker([sys.executable, __file__, "--worker", name, *places]) for name in names}
    for worker in workers.values():
        worker.ask("train 2")
    works = {name: partial(worker.ask, f"train {steps}") for name, worker in workers.items()}
    seconds = common.interleaved(works, options.repeats)
    total = steps * options.repeats + 2  # what the plain loops have trained by now
    samples: dict[str, Any] = {"seconds": seconds, "weights": {}, "losses": {}, "rounding": {}}
    rows = []
    for name, worker in workers.items():
        if name.startswith("lab"):
            worker.ask(f"train {total}")
        samples["weights"][name] = int(worker.first)
        samples["rounding"][name] = worker.ask("rounding")
        samples["losses"][name] = worker.ask(f"loss {windows}")
        worker.close()
        rate = common.spread([steps * BATCH * CONTEXT / s for s in seconds[name]], 0)
        ratio = common.spread(common.ratios(seconds["published"], seconds[name]))
        numbers = [f"{samples['rounding'][name]:.1e}", f"{samples['losses'][name]:.3f}"]
        rows.append([name, f"{worker.first:.0f}", rate, ratio, *numbers])
    head = ["loop", "weights", "tokens/s", "ratio", "error of a product", f"nats held out after {total} steps"]
    print(common.table(head, rows))
    return samples


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--text", type=Path, help="a text file")
    parser.add_argument("--nanogpt", metavar="FOLDER", help="a checkout of nanoGPT")
    options = common.arguments(__doc__ or "", repeats=5, parents=[parser])
    loop.prepare(options.threads)
    started, busy = time.perf_counter(), common.BusyMeter()
    with tempfile.TemporaryDirectory(prefix="lab-bench-") as folder:
        text = options.text
        if text is None:
            text = Path(folder) / "text.txt"
            own_source(text, 100_000 if options.quick else None)
        samples = measure(text, Path(folder), options)
    common.report(options, busy, started, samples)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        work(sys.argv[2], Path(sys.argv[3]), sys.argv[4], Path(sys.argv[5]), int(sys.argv[6]))
    else:
        main()
