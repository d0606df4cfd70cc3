"""What `gpu.py` reads about memory: XLA's plan, and the peaks that allocators saw."""

import functools
import json
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
from _gpu_cases import Case


def plan_of(call: functools.partial) -> tuple[int, str]:
    """Bytes beside the operands as XLA plans them, and the kernels of others that it calls."""
    program = call.func.lower(*call.args).compile()
    plan, text = program.memory_analysis(), program.as_text()
    found = re.findall(r'custom_call_target="(__cublas[^"]*|[^"]*mosaic[^"]*)"', text)
    epilogues = re.findall(r'"epilogue":"(\w+)"', text)
    called = sorted({*found, *epilogues} - {"DEFAULT"})
    return plan.temp_size_in_bytes + plan.output_size_in_bytes, ", ".join(called)


def torch_peak(call: functools.partial, torch) -> int:
    """Bytes beside the operands that PyTorch's allocator saw."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def peak_of(case: Case, name: str) -> int | None:
    """What JAX's allocator saw beside the operands; its peak only grows, so in a new process.

    Operands are zeros, made without temporaries; the choice among cuBLAS's algorithms is off, since
    trying them allocates as well.
    """
    peer = case.peers[name]
    shapes = jax.eval_shape(case.operands)
    arguments = [jnp.zeros(shapes[o].shape, shapes[o].dtype) for o in peer.takes]
    jax.block_until_ready(peer.call(*arguments))
    stats = jax.local_devices()[0].memory_stats() or {}
    peak = stats.get("peak_bytes_in_use")
    return None if peak is None else peak - sum(a.nbytes for a in arguments)


def peak_in_new_process(script: str, case: Case, name: str, arguments) -> int | None:
    """`peak_of`, by the script itself."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_autotune_level=0"
    done = subprocess.run(
        [sys.executable, script, *arguments, "--peak-of", case.name, name],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"XLA_FLAGS": flags.strip()},
    )
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["no reason given"])[-1])
    return json.loads(done.stdout.splitlines()[-1])
