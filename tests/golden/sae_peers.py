"""Files of autoencoders by the libraries that define them, and their reading of files written here.

  python sae_peers.py make FOLDER     writes the golden files, with inputs and what comes of them
  python sae_peers.py check FOLDER    loads each file that jaxtrelu wrote there, and compares

Needs torch, safetensors, einops, packaging, pydantic, pyyaml, requests and tqdm, and with
`pip install --no-deps` sae-lens, dictionary-learning and sae-bench: what else they ask for is a
language-model stack of gigabytes, in place of which those of stand_ins.py stand, since only
classes of weights and of results are used. Made with torch 2.13.0, safetensors 0.8.0,
sae-lens 6.54.12, dictionary-learning 0.1.0; checked with sae-bench 0.6.0.
"""

import json
import sys
from pathlib import Path

import numpy as np
import stand_ins
import torch

stand_ins.install()

import sae_lens.saes as lens
from dictionary_learning.dictionary import JumpReluAutoEncoder
from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
from dictionary_learning.trainers.top_k import AutoEncoderTopK
from safetensors.torch import load_file, save_file

D, M, OUT, ROWS = 6, 11, 4, 40


def draw(seed, shape, scale=1.0):
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def fill(module, threshold=0.4):
    """Random numbers in every parameter; thresholds of both signs, but for the buffers."""
    for seed, (name, value) in enumerate(sorted(module.named_parameters())):
        value.copy_(draw(seed, value.shape, 0.6))
        if name == "threshold":
            value.copy_(threshold + draw(seed, value.shape, 0.4))
    return module


def inputs(d=D):
    return draw(99, (ROWS, d), 1.5)


@torch.no_grad()
def keep(folder, features, output, x=None):
    np.savez(
        folder / "expected.npz",
        x=(inputs() if x is None else x).numpy(),
        features=features.numpy(),
        output=output.numpy(),
    )


@torch.no_grad()
def run_lens(sae, x):
    return sae.encode(x), sae(x)


def make_lens(folder, name, kind, **settings):
    cls, cfg = {
        "jumprelu": (lens.JumpReLUSAE, lens.JumpReLUSAEConfig),
        "jumprelu_transcoder": (lens.JumpReLUTranscoder, lens.JumpReLUTranscoderConfig),
        "jumprelu_skip_transcoder": (
            lens.JumpReLUSkipTranscoder,
            lens.JumpReLUSkipTranscoderConfig,
        ),
        "topk": (lens.TopKSAE, lens.TopKSAEConfig),
        "standard": (lens.StandardSAE, lens.StandardSAEConfig),
    }[kind]
    sae = fill(cls(cfg(d_in=D, d_sae=M, **settings)))
    (folder / name).mkdir(parents=True)
    sae.cfg.metadata.model_name = "a-model"
    sae.save_model(folder / name)
    if kind != "topk":
        # In float32 whatever the file is in, as jaxtrelu computes.
        keep(folder / name, *run_lens(sae.to(torch.float32), inputs()))


def make(folder):
    make_lens(folder, "saelens", "jumprelu")
    make_lens(folder, "saelens_no_subtraction", "jumprelu", apply_b_dec_to_input=False)
    make_lens(folder, "saelens_layer_norm", "jumprelu", normalize_activations="layer_norm")
    make_lens(
        folder, "saelens_constant_norm", "jumprelu", normalize_activations="constant_norm_rescale"
    )
    wide = {"d_out": OUT, "apply_b_dec_to_input": False}
    make_lens(folder, "saelens_transcoder", "jumprelu_transcoder", **wide)
    make_lens(folder, "saelens_skip_transcoder", "jumprelu_skip_transcoder", **wide)
    make_lens(folder, "saelens_bfloat16", "jumprelu", dtype="bfloat16")
    make_lens(folder, "refused_saelens_topk", "topk", k=3)
    make_lens(folder, "saelens_standard", "standard")

    # An old file: what version 5 wrote, read by SAELens itself.
    old = folder / "saelens_old"
    old.mkdir()
    weights = load_file(folder / "saelens" / "sae_weights.safetensors")
    save_file(weights, old / "sae_weights.safetensors")
    flat = {
        "architecture": "jumprelu", "d_in": D, "d_sae": M, "dtype": "float32", "device": "cpu",
        "model_name": "a-model", "hook_name": "blocks.3.hook_resid_pre", "hook_layer": 3,
        "hook_head_index": None, "activation_fn_str": "relu", "activation_fn_kwargs": {},
        "apply_b_dec_to_input": False, "finetuning_scaling_factor": False,
        "normalize_activations": "none", "prepend_bos": True, "context_size": 128,
        "dataset_path": "some/data", "dataset_trust_remote_code": True,
        "sae_lens_training_version": "5.9.1",
    }  # fmt: skip
    (old / "cfg.json").write_text(json.dumps(flat))
    keep(old, *run_lens(lens.SAE.load_from_disk(old), inputs()))

    # A training checkpoint, and one of before the threshold itself was trained.
    training = lens.JumpReLUTrainingSAE(
        lens.JumpReLUTrainingSAEConfig(d_in=D, d_sae=M, jumprelu_init_threshold=0.3)
    )
    fill(training)
    with torch.no_grad():
        training.threshold.abs_()
    for name in ("saelens_training", "saelens_log_threshold"):
        (folder / name).mkdir()
        training.save_model(folder / name)
        keep(folder / name, *run_lens(training, inputs()))
    weights = load_file(folder / "saelens_log_threshold" / "sae_weights.safetensors")
    weights["log_threshold"] = weights.pop("threshold").log()
    save_file(weights, folder / "saelens_log_threshold" / "sae_weights.safetensors")

    make_dictionary_learning(folder)
    make_others(folder)


@torch.no_grad()
def make_dictionary_learning(folder):
    jump = fill(JumpReluAutoEncoder(D, M))
    batch = fill(BatchTopKSAE(D, M, 3))
    batch.threshold.fill_(0.7)
    trainer = {"trainer": {"dict_class": "JumpReluAutoEncoder", "layer": 3, "lm_name": "a-model"}}
    saved = {
        "dictionary_learning": (jump, trainer),
        "dictionary_learning_batch_top_k": (
            batch, {"trainer": {"dict_class": "BatchTopKSAE", "k": 3}},
        ),
    }  # fmt: skip
    for name, (module, config) in saved.items():
        (folder / name).mkdir()
        torch.save(module.state_dict(), folder / name / "ae.pt")
        (folder / name / "config.json").write_text(json.dumps(config))
        keep(folder / name, module.encode(inputs()), module(inputs()))
    # As its training loop leaves them in mid-run: inputs there are divided by norm_factor.
    (folder / "dictionary_learning_mid_run").mkdir()
    optimizer = torch.optim.Adam(jump.parameters())
    torch.save(
        {"step": 7, "ae": jump.state_dict(), "optimizer": optimizer.state_dict(),
         "norm_factor": 2.0, "config": {"lr": 1e-3, "wandb_name": None, "steps": [1, 2]}},
        folder / "dictionary_learning_mid_run" / "ae.pt",
    )  # fmt: skip
    keep(folder / "dictionary_learning_mid_run", jump.encode(inputs() / 2), 2 * jump(inputs() / 2))
    batch.threshold.fill_(-1.0)
    (folder / "refused_unset").mkdir()
    torch.save(batch.state_dict(), folder / "refused_unset" / "ae.pt")
    (folder / "refused_topk").mkdir()
    top = fill(AutoEncoderTopK(D, M, 3))
    torch.save(top.state_dict(), folder / "refused_topk" / "ae.pt")
    config = {"trainer": {"dict_class": "AutoEncoderTopK", "k": 3}}
    (folder / "refused_topk" / "config.json").write_text(json.dumps(config))


@torch.no_grad()
def make_others(folder):
    """Formats without a library of weights: their rule by hand, in torch."""
    x, threshold = inputs(), 0.5 + draw(1, (M,), 0.2)
    w_enc, w_dec = draw(2, (D, M), 0.6), draw(3, (M, D), 0.6)
    b_enc, b_dec, skip = draw(4, (M,), 0.3), draw(5, (D,), 0.3), draw(6, (D, D), 0.3)

    def open_where(pi, threshold):
        return torch.where(pi > threshold, pi, 0)

    f = open_where(x @ w_enc + b_enc, threshold)
    gemma = folder / "gemma_scope_2"
    gemma.mkdir()
    arrays = {
        "w_enc": w_enc, "w_dec": w_dec, "b_enc": b_enc, "b_dec": b_dec, "threshold": threshold,
        "affine_skip_connection": skip,
    }  # fmt: skip
    save_file(arrays, gemma / "params.safetensors")
    keep(gemma, f, f @ w_dec + b_dec + x @ skip)

    gemma = folder / "gemma_scope"
    gemma.mkdir()
    arrays = {"W_enc": w_enc, "W_dec": w_dec, "b_enc": b_enc, "b_dec": b_dec}
    np.savez(
        gemma / "params.npz",
        threshold=threshold.numpy(),
        **{k: v.numpy() for k, v in arrays.items()},
    )
    keep(gemma, f, f @ w_dec + b_dec)

    tracer = folder / "circuit_tracer"
    tracer.mkdir()
    arrays = {
        "W_enc": w_enc.T.contiguous(), "W_dec": w_dec, "b_enc": b_enc, "b_dec": b_dec,
        "activation_function.threshold": threshold, "W_skip": skip,
    }  # fmt: skip
    save_file({k: v.bfloat16() for k, v in arrays.items()}, tracer / "layer_3.safetensors")
    narrow = {k: v.bfloat16().float() for k, v in arrays.items()}
    f = open_where(x @ narrow["W_enc"].T + narrow["b_enc"], narrow["activation_function.threshold"])
    keep(tracer, f, f @ narrow["W_dec"] + narrow["b_dec"] + x @ narrow["W_skip"].T)

    scope = folder / "llama_scope"
    (scope / "checkpoints").mkdir(parents=True)
    arrays = {
        "encoder.weight": w_enc.T.contiguous(), "decoder.weight": w_dec.T.contiguous(),
        "encoder.bias": b_enc, "decoder.bias": b_dec,
    }  # fmt: skip
    save_file(arrays, scope / "checkpoints" / "final.safetensors")
    cfg = {
        "d_model": D, "d_sae": M, "jump_relu_threshold": 0.5, "norm_activation": "dataset-wise",
        "dataset_average_activation_norm": {"in": 4.0, "out": 3.0}, "act_fn": "jumprelu",
    }  # fmt: skip
    (scope / "hyperparams.json").write_text(json.dumps(cfg))
    f = open_where(x * (D**0.5 / 4.0) @ w_enc + b_enc, torch.tensor(0.5))
    keep(scope, f, (f @ w_dec + b_dec) / (D**0.5 / 3.0))

    scope = folder / "llama_scope_r1"
    scope.mkdir()
    arrays["log_jumprelu_threshold"] = threshold.log()
    save_file(arrays, scope / "sae_weights.safetensors")
    cfg = {
        "d_model": D, "expansion_factor": 2, "hook_point_in": "blocks.3.hook_resid_post",
        "norm_activation": "dataset-wise",
        "dataset_average_activation_norm": {"in": 4.0, "out": 3.0},
    }  # fmt: skip
    (scope / "config.json").write_text(json.dumps(cfg))
    f = open_where(x * (D**0.5 / 4.0) @ w_enc + b_enc, threshold.log().exp())
    keep(scope, f, (f @ w_dec + b_dec) / (D**0.5 / 3.0))


def load_there(folder):
    """(encode, whole model) of a file written here, by the library that it was written for."""
    name = folder.name
    if name.startswith("saelens"):
        sae = lens.SAE.load_from_disk(folder)
        return sae.encode, sae
    if name.startswith("dictionary_learning_batch_top_k"):
        sae = BatchTopKSAE.from_pretrained(folder / "ae.pt")
        return sae.encode, sae
    if name.startswith("dictionary_learning"):
        sae = JumpReluAutoEncoder.from_pretrained(folder / "ae.pt")
        return sae.encode, sae
    return None


@torch.no_grad()
def check(folder):
    if (folder / "saebench.json").exists():
        from pydantic import TypeAdapter
        from sae_bench.evals.core.eval_output import CoreEvalOutput

        TypeAdapter(CoreEvalOutput).validate_json((folder / "saebench.json").read_text())
        print("saebench.json: valid")
    for case in sorted(path for path in folder.iterdir() if path.is_dir()):
        with np.load(case / "expected.npz") as expected:
            x, features, output = (torch.tensor(expected[k]) for k in ("x", "features", "output"))
        found = load_there(case)
        if found is None:  # read by the safetensors package, the format's own
            for file in case.glob("*.safetensors"):
                assert load_file(file), file
            print(f"{case.name}: read")
            continue
        encode, whole = found
        there = encode(x)
        differing = int(((there > 0) != (features > 0)).sum())
        assert not differing, f"{case.name}: {differing} gates differ"
        torch.testing.assert_close(there, features, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(whole(x), output, rtol=1e-4, atol=1e-5)
        print(f"{case.name}: {features.numel()} gates agree")


if __name__ == "__main__":
    {"make": make, "check": check}[sys.argv[1]](Path(sys.argv[2]))
