"""The published notebook's six blocks, told again: the same names, imports and calls in the same order.

They run in one namespace, after CFG_PATH, CKPT_PATH, H, W, DDIM_STEPS, ETA, SEED, DEVICE, STYLES (paths) and CONTENT (a path) are set.
"""

LOAD = """
import sys
sys.path.append("../")
import os, random
import cv2
import numpy as np
import torch
import torch.nn.functional as F
from pytorch_lightning import seed_everything
from PIL import ImageDraw, ImageFont, Image
import matplotlib.pyplot as plt
from einops import rearrange
from omegaconf import OmegaConf
import albumentations
from main import instantiate_from_config
from ldm.models.diffusion.ddim import DDIMSampler

seed_everything(SEED)
config = OmegaConf.load(CFG_PATH)
config.model.params.ckpt_path = CKPT_PATH
config.model.params.first_stage_config.params.ckpt_path = None
model = instantiate_from_config(config.model)
model = model.eval().to(DEVICE)
"""

HELPERS = """
def preprocess_image(path, size=(W, H)):
    picture = Image.open(path)
    if picture.mode != "RGB":
        picture = picture.convert("RGB")
    values = np.array(picture.resize(size)).astype(np.uint8)
    return torch.from_numpy(rearrange((values / 127.5 - 1.0).astype(np.float32), "h w c -> c h w"))


def tensor_to_rgb(x):
    return torch.clamp((x + 1.0) / 2.0, min=0.0, max=1.0)


def display_samples(samples, n_columns=1, figsize=(12, 12)):
    if isinstance(samples, (list, tuple)):
        samples = torch.cat(samples, dim=0)
    sheet = rearrange(samples, "(n m) c h w -> (m h) (n w) c", n=n_columns).cpu().numpy() * 255.0
    plt.rcParams["figure.figsize"] = figsize
    plt.imshow(Image.fromarray(sheet.astype(np.uint8)))
    plt.axis("off")
    plt.show()
"""

STYLE_PICTURES = """
style_images = torch.stack([preprocess_image(path) for path in STYLES], dim=0).to(DEVICE)
"""

SHOW = """
display_samples(tensor_to_rgb(style_images), n_columns=len(style_images))
"""

STYLES_ALONE = """
bs = len(style_images)
with torch.no_grad(), model.ema_scope("Plotting"):
    c_content = torch.zeros((bs, model.channels, model.image_size, model.image_size)).to(DEVICE)
    c_style = model.get_style_features(model.vgg(model.vgg_scaling_layer(style_images)))
    c = {"c1": c_content, "c2": c_style}
    samples = model.sample_log(cond=c, batch_size=bs, ddim=True, ddim_steps=DDIM_STEPS, eta=1.)[0]
    x_samples = tensor_to_rgb(model.decode_first_stage(samples))
display_samples(x_samples, n_columns=bs)
"""

TRANSFER = """
def get_content_style_features(content_path, style_path, h=H, w=W):
    style_image = preprocess_image(style_path)[None, :].to(DEVICE)
    content_image = preprocess_image(content_path, size=(w, h))[None, :].to(DEVICE)
    with torch.no_grad(), model.ema_scope("Plotting"):
        c_style = model.get_style_features(model.vgg(model.vgg_scaling_layer(style_image)))
        null_style = c_style.clone()
        null_style[:] = model.null_style_vector.weight[0]
        posterior = model.encode_first_stage(content_image)
        c_content = model.get_content_features(model.get_first_stage_encoding(posterior))
        null_content = torch.zeros_like(c_content)
    return {"c1": c_content, "c2": c_style}, {"c1": c_content, "c2": null_style}, {"c1": null_content, "c2": c_style}


def style_transfer(content_path, style_path, h=H, w=W, content_s=1., style_s=1., ddim_steps=DDIM_STEPS, eta=ETA):
    c, c_null_style, c_null_content = get_content_style_features(content_path, style_path, h, w)
    with torch.no_grad(), model.ema_scope("Plotting"):
        samples = model.sample_log(
            cond=c, batch_size=1, x_T=torch.rand_like(c["c1"]), ddim=True, ddim_steps=ddim_steps, eta=eta,
            unconditional_guidance_scale=content_s, unconditional_conditioning=c_null_content,
            unconditional_guidance_scale_2=style_s, unconditional_conditioning_2=c_null_style)[0]
        return tensor_to_rgb(model.decode_first_stage(samples))


style_image = preprocess_image(STYLES[0])[None, :]
content_image = preprocess_image(CONTENT)[None, :]
display_samples((tensor_to_rgb(content_image), tensor_to_rgb(style_image)), figsize=(6, 3), n_columns=2)
x_samples = style_transfer(CONTENT, STYLES[0], content_s=0.5, style_s=2.)
display_samples(x_samples, figsize=(3, 3))
"""

BLOCKS = (LOAD, HELPERS, STYLE_PICTURES, SHOW, STYLES_ALONE, TRANSFER)

# The class-conditional note's sampling loop, after `model`, `classes`, `null_class`, `n`, `shape`, `scale`, `steps` and `eta` are set.
CLASSES = """
sampler = DDIMSampler(model)
all_samples = []
with torch.no_grad():
    with model.ema_scope():
        uc = model.get_learned_conditioning({model.cond_stage_key: torch.tensor(n * [null_class]).to(model.device)})
        for label in classes:
            xc = torch.tensor(n * [label])
            c = model.get_learned_conditioning({model.cond_stage_key: xc.to(model.device)})
            latents, _ = sampler.sample(S=steps, conditioning=c, batch_size=n, shape=shape, verbose=False,
                                        unconditional_guidance_scale=scale, unconditional_conditioning=uc, eta=eta)
            pictures = model.decode_first_stage(latents)
            all_samples.append(torch.clamp((pictures + 1.0) / 2.0, min=0.0, max=1.0))
"""
