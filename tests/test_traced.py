"""Features for evaluations and the denoising of images, on a GPU that is not there and on one."""

from __future__ import annotations

import pytest
import torch
import tracing
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, UNet2DConditionModel

from synclr_cli.learning import backbone, features
from synclr_cli.learning.runtime import Runtime
from synclr_cli.render.engines.pocket.pipeline import SHAPE, PocketPipeline, make_unet
from synclr_cli.render.engines.pocket.text import Whitening

ARCH = "vit_tiny_patch16_224"


def extract(rt: Runtime, *, depth: int = 2) -> torch.Tensor:
    torch.manual_seed(0)
    model = backbone.build(ARCH, image_size=64, depth=depth).eval().to(rt.device)
    return features.of_batch(model, torch.ones(3, 3, 64, 64), rt)


def test_features_are_extracted_on_a_gpu_in_float32() -> None:
    with tracing.fake_gpu() as device, tracing.Strict():
        x = extract(Runtime(device, torch.bfloat16))
        assert (x.device, x.dtype, x.shape) == (device, torch.float32, (3, 192))


def test_features_of_a_model_left_on_the_cpu_are_found_out() -> None:
    model = backbone.build(ARCH, image_size=64, depth=1)
    with tracing.fake_gpu() as device, pytest.raises(Exception, match="type"):
        features.of_batch(model, torch.ones(3, 3, 64, 64), Runtime(device, torch.bfloat16))


def pipeline() -> PocketPipeline:
    torch.manual_seed(0)
    unet = make_unet(16, 8).eval()
    pipe = PocketPipeline(unet, FlowMatchEulerDiscreteScheduler(), Whitening(32, 8))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def flow(device: torch.device, pipe: PocketPipeline) -> torch.Tensor:
    return pipe(
        prompt_embeds=torch.zeros(2, 8, device=device),
        latents=torch.ones(2, *SHAPE),
        num_inference_steps=3,
        output_type="latent",
    ).images


def test_pocket_denoises_on_a_gpu() -> None:
    """In bfloat16; the sample stays float32. No value is looked at between its steps."""
    pipe = pipeline()
    with tracing.fake_gpu() as device:
        tracing.move(pipe.unet).to(torch.bfloat16)
        samples = flow(device, pipe)
        assert (samples.device, samples.dtype) == (device, torch.float32)


def test_noise_in_another_dtype_than_the_denoisers_is_found_out() -> None:
    unet = make_unet(16, 8).eval()
    with tracing.fake_gpu() as device, tracing.Strict(), pytest.raises(Exception, match="dtype"):
        tracing.move(unet).to(torch.bfloat16)
        unet(torch.ones(2, *SHAPE, device=device), torch.zeros(2, device=device), None,
             class_labels=torch.zeros(2, 8, device=device))  # fmt: skip


def test_a_diffusers_denoiser_and_decoder_run_on_a_gpu_in_half_precision() -> None:
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8,
        cross_attention_dim=32, attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(16, 32), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=8,
    )  # fmt: skip
    with tracing.fake_gpu() as device, torch.no_grad():
        for part in (unet, vae):
            tracing.move(part).to(torch.float16)
        with tracing.Strict():
            latents = torch.ones(2, 4, 8, 8, device=device, dtype=torch.float16)
            text = torch.ones(2, 7, 32, device=device, dtype=torch.float16)
            time = torch.full((), 5, device=device)
            images = vae.decode(unet(latents, time, encoder_hidden_states=text).sample).sample
    assert (images.device, images.dtype, images.shape) == (device, torch.float16, (2, 3, 16, 16))


@pytest.mark.gpu
def test_features_on_a_gpu_are_those_on_a_cpu() -> None:
    cpu, gpu = (extract(Runtime(torch.device(d), None)).cpu() for d in ("cpu", "cuda:0"))
    torch.testing.assert_close(gpu, cpu, rtol=1e-2, atol=1e-2)  # TF32


@pytest.mark.gpu
def test_pocket_on_a_gpu_denoises_what_a_cpu_does() -> None:
    pipe = pipeline()
    cpu = flow(torch.device("cpu"), pipe)
    pipe.unet.to("cuda:0")
    gpu = flow(torch.device("cuda:0"), pipe).cpu()
    torch.testing.assert_close(gpu, cpu, rtol=1e-2, atol=1e-2)
