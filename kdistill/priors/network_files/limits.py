"""What a generator may ask for, in proportion to its tensors: a small file stays a small job."""

from collections.abc import Iterator

from torch import Tensor

from kdistill.priors.stylegan import Generator, StyleGAN3

MAX_SIDE = 4096  # pixels of a feature map
MAX_LAYERS = 200  # StyleGAN-XL at 1024 pixels has about 40
# Elements of one layer's feature maps, and multiplications per image: what every generator may
# have, and what each parameter allows on top.
ELEMENTS, ELEMENTS_PER_PARAMETER = 1 << 23, 64
PRODUCTS, PRODUCTS_PER_PARAMETER = 1 << 32, 40_000
# What each parameter beyond the first million allows on top of that: no small file has them.  By
# the formulas of StyleGAN3, configuration T at 1024 pixels has 17 elements and 19,000
# multiplications per parameter, R (whose filters are not separable) 49 and 110,000.
SMALL, ELEMENTS_BEYOND, PRODUCTS_BEYOND = 1 << 20, 256, 1_000_000


def excess(generator: Generator) -> str | None:
    """Return what the generator asks for beyond the limits, or None; nothing of it is made."""
    config = generator.config
    num_parameters = sum(x.numel() for x in generator.tensors.values())
    sides, layers = [config.size], _stylegan2_layers
    if isinstance(generator, StyleGAN3):
        layers = _stylegan3_layers
        sides += config.input.size
        for layer in config.layers:
            sides += [16 * layer.up, 16 * layer.down, *map(abs, layer.padding)]
    if max(sides) > MAX_SIDE:
        return f"sizes beyond {MAX_SIDE} pixels"
    mapping = config.mapping
    widths = (config.channels, mapping.z_dim, mapping.w_dim, mapping.classes, mapping.num_layers)
    if max(widths) > num_parameters:
        return f"sizes of {max(widths)} with {num_parameters} parameters"
    if max(generator.num_layers, mapping.num_layers) > MAX_LAYERS:
        return f"more than {MAX_LAYERS} layers"
    beyond = max(0, num_parameters - SMALL)
    max_elements = ELEMENTS + ELEMENTS_PER_PARAMETER * num_parameters + ELEMENTS_BEYOND * beyond
    max_products = PRODUCTS + PRODUCTS_PER_PARAMETER * num_parameters + PRODUCTS_BEYOND * beyond
    total = 0
    for elements, products in layers(generator):
        total += products
        if elements > max_elements:
            return f"feature maps of {elements:,} numbers with {num_parameters:,} parameters"
        if total > max_products:
            return f"{total:,} multiplications per image with {num_parameters:,} parameters"
    return None


def _stylegan2_layers(generator: Generator) -> Iterator[tuple[int, int]]:
    """Yield elements and multiplications of each layer, up to one that lacks its weight."""
    for name in generator.layer_names:
        weight = generator.tensors.get(f"synthesis.{name}.weight")
        if weight is None or weight.ndim != 4:
            return  # rendering stops there too, and says so
        pixels = int(name.split(".")[0][1:]) ** 2
        features = weight.shape[0] + weight.shape[1] + generator.channels
        yield features * pixels, weight.numel() * pixels


def _stylegan3_layers(generator: StyleGAN3) -> Iterator[tuple[int, int]]:
    """Yield elements and multiplications of the input and of each layer, as above."""
    sides = generator.config.input.size
    weight = generator.tensors.get("synthesis.input.weight")
    elements = (0 if weight is None else sum(weight.shape)) * sides[0] * sides[1]
    yield elements, elements
    for layer in generator.config.layers:
        name = f"synthesis.{layer.name}"
        weight = generator.tensors.get(f"{name}.weight")
        if weight is None or weight.ndim != 4:
            return
        num_out, num_in, *_ = weight.shape
        filters = [generator.tensors.get(f"{name}.{part}_filter") for part in ("up", "down")]
        convolved = [max(0, side + weight.shape[-1] - 1) for side in sides]
        left, right, above, below = layer.padding
        upsampled = [
            max(0, side * layer.up + padding)
            for side, padding in zip(convolved, (left + right, above + below), strict=True)
        ]
        pixels_convolved, pixels_upsampled = (
            convolved[0] * convolved[1],
            upsampled[0] * upsampled[1],
        )
        elements = num_in * sides[0] * sides[1] + num_out * (pixels_convolved + pixels_upsampled)
        products = num_out * pixels_upsampled * sum(map(_products_per_pixel, filters))
        yield elements, weight.numel() * pixels_convolved + products
        shrinkage = sum(map(_length, filters)) - 2
        sides = [max(0, -(-(side - shrinkage) // layer.down)) for side in upsampled]


def _products_per_pixel(taps: Tensor | None) -> int:
    """Return a filter's multiplications: those of two passes where it is separable, or of one."""
    return 1 if taps is None else taps.numel() * (2 if taps.ndim == 1 else 1)


def _length(taps: Tensor | None) -> int:
    return 1 if taps is None or taps.ndim == 0 else taps.shape[0]
