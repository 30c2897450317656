"""The stand-in for torch._dynamo: enough for who compiles nothing, and out of the way of who does."""

from __future__ import annotations

import subprocess
import sys

import pytest

FIRST = """
import sys
from lab import fastimport
fastimport.load_torchmetrics()
fastimport.defer_dynamo()
import lightning.pytorch as pl
import torch
from lightning.fabric.wrappers import OptimizedModule

def deferred():
    return not {"torch._dynamo.eval_frame", "torch._inductor", "sympy"} & sys.modules.keys()

def trained(layer, step=None):
    optimizer = torch.optim.Adam(layer.parameters())
    layer(torch.ones(3)).sum().backward()
    (step or (lambda optimizer: optimizer.step()))(optimizer)
    optimizer.zero_grad()
    return layer.weight.detach()

torch.manual_seed(0)
layer = torch.nn.Linear(3, 3)
again = torch.nn.Linear(3, 3)
again.load_state_dict(layer.state_dict())
eager = trained(layer)
with fastimport.without_inductor():
    pl.Trainer(deterministic=True, accelerator="cpu", logger=False, enable_checkpointing=False)
assert torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled()
assert not isinstance(layer, OptimizedModule)
assert torch._dynamo.__file__.endswith("__init__.py")
assert deferred()
"""


def run(then: str) -> None:
    done = subprocess.run([sys.executable, "-c", FIRST + then], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "then",
    [
        """
import torch._dynamo.config as config
from torch._dynamo import eval_frame, utils
assert torch._dynamo.config is config and torch._dynamo.utils is utils
assert config.__spec__.loader.path == config.__spec__.origin == config.__file__
assert eval_frame.OptimizedModule is torch._dynamo.OptimizedModule is not OptimizedModule
""",
        """
class Broken:
    def find_spec(self, name, *_):
        if name == "torch._dynamo.eval_frame":
            raise ImportError("broken")

sys.meta_path.insert(0, broken := Broken())
try:
    torch._dynamo.reset()
except ImportError as error:
    assert str(error) == "broken"
assert "torch._dynamo.eval_frame" not in sys.modules
sys.meta_path.remove(broken)
from torch._dynamo import graph_break
assert graph_break.__module__ == "torch._dynamo.decorators"
torch._dynamo.config.verbose = True
assert torch._dynamo.config.verbose
""",
        """
torch._subclasses.fake_tensor.FakeTensorMode()  # by torch._dynamo.config, as fully_shard does
import torch._inductor.config
assert torch._inductor.config.deterministic
with fastimport.without_inductor():
    torch.use_deterministic_algorithms(False)
assert not torch._inductor.config.deterministic and not torch.are_deterministic_algorithms_enabled()
""",
        """
torch._dynamo.ours = 1
assert sys.modules["torch._dynamo"].ours == 1 and "ours" in vars(sys.modules["torch._dynamo"])
assert torch.optim.Optimizer.zero_grad.__wrapped__.__dict__.keys().isdisjoint({"__dynamo_disable"})
kept = torch.compiler.disable(lambda x: 2 * x + torch.compiler.is_compiling())
assert kept._torchdynamo_disable
double = torch.compile(lambda x: kept(x) + torch.compiler.is_compiling(), backend="eager")
assert double(torch.ones(1)).item() == 3  # compiled but for what is kept from it
whole = torch.compile(layer, backend="eager")
assert isinstance(whole, OptimizedModule) and not isinstance(layer, OptimizedModule)
from lightning.fabric.wrappers import _unwrap_compiled
assert _unwrap_compiled(whole)[0] is layer
step = torch.compile(lambda optimizer: optimizer.step(), backend="eager")
assert torch.allclose(trained(again, step), eager)
assert torch.optim.Optimizer.zero_grad.__wrapped__.__dynamo_disable._torchdynamo_disable
""",
    ],
    ids=["a part", "broken at first", "inductor", "compiled"],
)
def test_the_real_one_is_there_for_who_asks_for_it(then: str) -> None:
    run(then + "assert 'torch._dynamo.eval_frame' in sys.modules\n")


def test_two_ranks_need_none() -> None:
    run("""
import torch.distributed
store = torch.distributed.HashStore()
torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
parallel = torch.nn.parallel.DistributedDataParallel(again)
parallel(torch.ones(3)).sum().backward()
assert torch.equal(again.weight.grad, torch.ones(3, 3))
assert deferred()
""")
