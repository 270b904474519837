"""What a generator may ask for: memory and work in proportion to its tensors, so that a small file stays a small job."""

from collections.abc import Iterator

from torch import Tensor

from kdistill.priors.stylegan import Generator, StyleGAN3

MAX_SIDE = 4096  # pixels of a feature map
MAX_LAYERS = 200  # StyleGAN-XL at 1024 pixels has about 40
# elements of one layer's feature maps, and multiplications of one image, that every generator may
# have, and for each parameter
ELEMENTS, ELEMENTS_PER_PARAMETER = 1 << 23, 64
PRODUCTS, PRODUCTS_PER_PARAMETER = 1 << 32, 40_000
# what a parameter beyond these allows on top, which no small file has: by the formulas of
# StyleGAN3, configuration T at 1024 pixels has 17 elements and 19,000 multiplications per
# parameter, R (filters that are no lines) 49 and 110,000
SMALL, ELEMENTS_BEYOND, PRODUCTS_BEYOND = 1 << 20, 256, 1_000_000


def excess(generator: Generator) -> str | None:
    """Return what the generator asks for beyond the limits, or None.  Nothing of that size is made to find out."""
    config = generator.config
    parameters = sum(x.numel() for x in generator.tensors.values())
    sides = [config.size]
    if isinstance(generator, StyleGAN3):
        numbers = [
            n for layer in config.layers for n in (16 * layer.up, 16 * layer.down, *layer.padding)
        ]
        sides += [*config.input.size, *map(abs, numbers)]
    if max(sides) > MAX_SIDE:
        return f"sizes beyond {MAX_SIDE} pixels"
    widths = (
        config.channels,
        config.mapping.z_dim,
        config.mapping.w_dim,
        config.mapping.classes,
        config.mapping.num_layers,
    )
    if max(widths) > parameters:
        return f"sizes of {max(widths)} with {parameters} parameters"
    if max(generator.num_layers, config.mapping.num_layers) > MAX_LAYERS:
        return f"more than {MAX_LAYERS} layers"
    beyond = max(0, parameters - SMALL)
    most_elements = ELEMENTS + ELEMENTS_PER_PARAMETER * parameters + ELEMENTS_BEYOND * beyond
    most_products = PRODUCTS + PRODUCTS_PER_PARAMETER * parameters + PRODUCTS_BEYOND * beyond
    total = 0
    for elements, products in (
        _stylegan3(generator) if isinstance(generator, StyleGAN3) else _stylegan2(generator)
    ):
        total += products
        if elements > most_elements:
            return f"feature maps of {elements:,} numbers with {parameters:,} parameters"
        if total > most_products:
            return f"{total:,} multiplications per image with {parameters:,} parameters"
    return None


def _stylegan2(generator: Generator) -> Iterator[tuple[int, int]]:
    """Yield elements and multiplications of each layer, up to one that lacks its weight."""
    for name in generator.layer_names:
        weight = generator.tensors.get(f"synthesis.{name}.weight")
        if weight is None or weight.ndim != 4:
            return  # rendering stops there too, and says so
        pixels = int(name.split(".")[0][1:]) ** 2
        yield (
            (weight.shape[0] + weight.shape[1] + generator.channels) * pixels,
            weight.numel() * pixels,
        )


def _stylegan3(generator: StyleGAN3) -> Iterator[tuple[int, int]]:
    width, height = generator.config.input.size
    sources = generator.tensors.get("synthesis.input.weight")
    features = 0 if sources is None else sum(sources.shape)
    yield features * width * height, features * width * height
    for layer in generator.config.layers:
        weight = generator.tensors.get(f"synthesis.{layer.name}.weight")
        if weight is None or weight.ndim != 4:
            return
        up, down = (
            generator.tensors.get(f"synthesis.{layer.name}.{part}_filter")
            for part in ("up", "down")
        )
        reach = weight.shape[-1] - 1
        convolved = max(0, width + reach) * max(0, height + reach)
        left, right, above, below = layer.padding
        raised_width = max(0, (width + reach) * layer.up + left + right)
        raised_height = max(0, (height + reach) * layer.up + above + below)
        raised = raised_width * raised_height
        elements = weight.shape[1] * width * height + weight.shape[0] * (convolved + raised)
        yield (
            elements,
            weight.numel() * convolved + weight.shape[0] * raised * (_taps(up) + _taps(down)),
        )
        width, height = (
            max(0, -(-(raised - (_length(up) + _length(down) - 2)) // layer.down))
            for raised in (raised_width, raised_height)
        )


def _taps(taps: Tensor | None) -> int:
    """Return the multiplications per element: of two passes of a filter that is a line, or of one by a square."""
    return 1 if taps is None else taps.numel() * (2 if taps.ndim == 1 else 1)


def _length(taps: Tensor | None) -> int:
    return 1 if taps is None or taps.ndim == 0 else taps.shape[0]
