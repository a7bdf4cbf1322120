"""Style predictors: networks that compute the style code of an image, a vector of 100 numbers.

`InceptionPredictor` is the paper's: Inception-v3 cut after Mixed_6e, with torchvision's layer names.
`MobilePredictor` is the small Magenta network, a MobileNetV2. Neither has batch norms: published ones are folded into
the convolutions. So no predictor can be run with batch statistics by mistake, which would distort the codes.
"""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Callable

import jax
import jax.numpy as jnp
from einops import reduce
from flax import nnx
from jaxtyping import Array, Float

from crossearth_jax.ops.backend import platform

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # of images in [0, 1]

# The published predictor standardises blue with a deviation of 0.255 and reverts this with 0.225. So red and green
# become 2x - 1, but blue is contracted around its mean. The published weights and codes depend on this slip, so it is
# reproduced.
STANDARDISE_STD = (0.229, 0.224, 0.255)
RESTORE_STD = (0.229, 0.224, 0.225)

INCEPTION_LEAST_SIDE = 43  # pixels; smaller images have no pixel left after the strided layers
MOBILE_SIDE = 256  # of the images MobilePredictor was exported for

# MobileNetV2: expansion factor, output width, number of blocks, stride of the first block.
MOBILE_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def inception_colours(images: Float[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
    """Map [0, 1] to the colour range of the published Inception predictor, including its slip in the blue channel."""
    mean = jnp.asarray(IMAGENET_MEAN, images.dtype)
    standardised = (images - mean) / jnp.asarray(STANDARDISE_STD, images.dtype)
    return standardised * (jnp.asarray(RESTORE_STD, images.dtype) / 0.5) + (mean - 0.5) / 0.5


class ConvBlock(nnx.Module):
    """Convolution (with folded batch norm) and activation."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: tuple[int, int] = (1, 1),
        stride: int = 1,
        padding: str = "SAME",
        activation: Callable[[jax.Array], jax.Array] | None = nnx.relu,
        *,
        dtype: str,
        rngs: nnx.Rngs,
    ):
        self.conv = nnx.Conv(
            inputs,
            outputs,
            kernel,
            strides=stride,
            padding=padding,
            dtype=jnp.dtype(dtype),
            rngs=rngs,
        )
        self.activation = activation

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        """Return the activated feature map."""
        x = self.conv(x)
        return x if self.activation is None else self.activation(x)


def max_pool(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    """Take the maximum of 3 x 3 pixels with stride 2, without padding."""
    return nnx.max_pool(x, (3, 3), strides=(2, 2))


def average_pool(x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Take the mean of 3 x 3 pixels with stride 1; zero padding counts, so sums at borders are divided by 9 too."""
    return nnx.avg_pool(x, (3, 3), strides=(1, 1), padding="SAME", count_include_pad=True)


class InceptionA(nnx.Module):
    """Mixed_5b to Mixed_5d: 1x1, 5x5, double 3x3 and pooling branches."""

    def __init__(self, inputs: int, pool_width: int, *, dtype: str, rngs: nnx.Rngs):
        conv = functools.partial(ConvBlock, dtype=dtype, rngs=rngs)
        self.branch1x1 = conv(inputs, 64)
        self.branch5x5_1 = conv(inputs, 48)
        self.branch5x5_2 = conv(48, 64, (5, 5))
        self.branch3x3dbl_1 = conv(inputs, 64)
        self.branch3x3dbl_2 = conv(64, 96, (3, 3))
        self.branch3x3dbl_3 = conv(96, 96, (3, 3))
        self.branch_pool = conv(inputs, pool_width)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w d"]:
        """Return the outputs of the branches, concatenated along the channels."""
        wide = self.branch5x5_2(self.branch5x5_1(x))
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return jnp.concatenate([self.branch1x1(x), wide, double, self.branch_pool(average_pool(x))], axis=-1)


class InceptionB(nnx.Module):
    """Mixed_6a: two strided branches and a max pool, which halve height and width."""

    def __init__(self, inputs: int, *, dtype: str, rngs: nnx.Rngs):
        conv = functools.partial(ConvBlock, dtype=dtype, rngs=rngs)
        self.branch3x3 = conv(inputs, 384, (3, 3), 2, "VALID")
        self.branch3x3dbl_1 = conv(inputs, 64)
        self.branch3x3dbl_2 = conv(64, 96, (3, 3))
        self.branch3x3dbl_3 = conv(96, 96, (3, 3), 2, "VALID")

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        """Return the outputs of the branches, concatenated along the channels."""
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return jnp.concatenate([self.branch3x3(x), double, max_pool(x)], axis=-1)


class InceptionC(nnx.Module):
    """Mixed_6b to Mixed_6e: 7x7 convolutions as pairs of 1x7 and 7x1."""

    def __init__(self, inputs: int, width: int, *, dtype: str, rngs: nnx.Rngs):
        conv = functools.partial(ConvBlock, dtype=dtype, rngs=rngs)
        self.branch1x1 = conv(inputs, 192)
        self.branch7x7_1 = conv(inputs, width)
        self.branch7x7_2 = conv(width, width, (1, 7))
        self.branch7x7_3 = conv(width, 192, (7, 1))
        self.branch7x7dbl_1 = conv(inputs, width)
        self.branch7x7dbl_2 = conv(width, width, (7, 1))
        self.branch7x7dbl_3 = conv(width, width, (1, 7))
        self.branch7x7dbl_4 = conv(width, width, (7, 1))
        self.branch7x7dbl_5 = conv(width, 192, (1, 7))
        self.branch_pool = conv(inputs, 192)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w d"]:
        """Return the outputs of the branches, concatenated along the channels."""
        single = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return jnp.concatenate([self.branch1x1(x), single, double, self.branch_pool(average_pool(x))], axis=-1)


class InceptionPredictor(nnx.Module):
    """The paper's style predictor, for images with sides of at least `INCEPTION_LEAST_SIDE` pixels."""

    def __init__(self, code_size: int = 100, dtype: str = "float32", *, rngs: nnx.Rngs):
        conv = functools.partial(ConvBlock, dtype=dtype, rngs=rngs)
        self.Conv2d_1a_3x3 = conv(3, 32, (3, 3), 2, "VALID")
        self.Conv2d_2a_3x3 = conv(32, 32, (3, 3), 1, "VALID")
        self.Conv2d_2b_3x3 = conv(32, 64, (3, 3))
        self.Conv2d_3b_1x1 = conv(64, 80)
        self.Conv2d_4a_3x3 = conv(80, 192, (3, 3), 1, "VALID")
        self.Mixed_5b = InceptionA(192, 32, dtype=dtype, rngs=rngs)
        self.Mixed_5c = InceptionA(256, 64, dtype=dtype, rngs=rngs)
        self.Mixed_5d = InceptionA(288, 64, dtype=dtype, rngs=rngs)
        self.Mixed_6a = InceptionB(288, dtype=dtype, rngs=rngs)
        self.Mixed_6b = InceptionC(768, 128, dtype=dtype, rngs=rngs)
        self.Mixed_6c = InceptionC(768, 160, dtype=dtype, rngs=rngs)
        self.Mixed_6d = InceptionC(768, 160, dtype=dtype, rngs=rngs)
        self.Mixed_6e = InceptionC(768, 192, dtype=dtype, rngs=rngs)
        self.fc = nnx.Linear(768, code_size, dtype=jnp.dtype(dtype), rngs=rngs)

    def __call__(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b k"]:
        """Return the style codes of images in [0, 1]."""
        x = self.stem(inception_colours(images))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x)))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        return self.fc(reduce(x, "b h w c -> b c", "mean"))

    def stem(self, x: Float[Array, "b h w 3"]) -> Float[Array, "b h8 w8 c"]:
        """Return the input of Mixed_5b."""
        x = max_pool(self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x))))
        return max_pool(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)))


class Depthwise(nnx.Module):
    """Depthwise 3 x 3 convolution (with folded batch norm) with zero padding as TensorFlow's SAME."""

    def __init__(self, width: int, stride: int, *, dtype: str, rngs: nnx.Rngs):
        self.stride, self.dtype = stride, jnp.dtype(dtype)
        self.kernel = nnx.Param(jax.random.normal(rngs.params(), (3, 3, width)) / 3)
        self.bias = nnx.Param(jnp.zeros(width))

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
        """Return the filtered feature map; its sides are those of `x` divided by the stride, rounded up."""
        filtered = depthwise_by_shifts if platform() == "cpu" else depthwise_by_groups
        kernel, bias = self.kernel[...].astype(self.dtype), self.bias[...].astype(self.dtype)
        return filtered(x.astype(self.dtype), kernel, self.stride) + bias


def depthwise_by_shifts(
    x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c"], stride: int
) -> Float[Array, "b h2 w2 c"]:
    """Compute a depthwise convolution as a sum of nine shifted products.

    On CPU, XLA's grouped convolution takes about twenty times as long.
    """
    height, width = x.shape[1:3]
    pads = jax.lax.padtype_to_pads((height, width), (3, 3), (stride, stride), "SAME")
    x = jnp.pad(x, [(0, 0), *pads, (0, 0)])
    last_row, last_column = ((side - 1) // stride * stride for side in (height, width))
    return functools.reduce(
        operator.add,
        (
            x[:, row : row + last_row + 1 : stride, column : column + last_column + 1 : stride] * kernel[row, column]
            for row, column in itertools.product(range(3), repeat=2)
        ),
    )


def depthwise_by_groups(
    x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c"], stride: int
) -> Float[Array, "b h2 w2 c"]:
    """Compute a depthwise convolution as a grouped convolution.

    For a TPU, `depthwise_by_shifts` takes four times as long to compile.
    """
    return jax.lax.conv_general_dilated(
        x,
        kernel[:, :, None],
        (stride, stride),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


class InvertedResidual(nnx.Module):
    """MobileNetV2's block: 1x1 expansion, depthwise convolution, 1x1 projection without activation."""

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int, *, dtype: str, rngs: nnx.Rngs):
        conv = functools.partial(ConvBlock, dtype=dtype, rngs=rngs)
        width = inputs * expansion
        self.expand = conv(inputs, width, activation=nnx.relu6) if expansion > 1 else None
        self.depthwise = Depthwise(width, stride, dtype=dtype, rngs=rngs)
        self.project = conv(width, outputs, activation=None)
        self.residual = stride == 1 and inputs == outputs

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        """Return the block's output, with the input added if the shapes are equal."""
        wide = x if self.expand is None else self.expand(x)
        narrow = self.project(nnx.relu6(self.depthwise(wide)))
        return x + narrow if self.residual else narrow


class MobilePredictor(nnx.Module):
    """The style predictor of the small network, for images of 256 x 256 pixels."""

    def __init__(self, code_size: int = 100, dtype: str = "float32", *, rngs: nnx.Rngs):
        self.first = ConvBlock(3, 32, (3, 3), 2, activation=nnx.relu6, dtype=dtype, rngs=rngs)
        blocks, inputs = [], 32
        for expansion, outputs, repetitions, first_stride in MOBILE_STAGES:
            for repetition in range(repetitions):
                stride = first_stride if repetition == 0 else 1
                blocks.append(InvertedResidual(inputs, outputs, expansion, stride, dtype=dtype, rngs=rngs))
                inputs = outputs
        self.blocks = nnx.List(blocks)
        self.last = ConvBlock(inputs, 1280, activation=nnx.relu6, dtype=dtype, rngs=rngs)
        self.fc = nnx.Linear(1280, code_size, dtype=jnp.dtype(dtype), rngs=rngs)

    def __call__(self, images: Float[Array, "b 256 256 3"]) -> Float[Array, "b k"]:
        """Return the style codes of images in [0, 1]."""
        x = self.first(images)
        for block in self.blocks:
            x = block(x)
        return self.fc(reduce(self.last(x), "b h w c -> b c", "mean"))
