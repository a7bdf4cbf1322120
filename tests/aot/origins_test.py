"""Values computed from trainable parameters alone, traced through loops, branches and calls."""

import jax
import jax.numpy as jnp

from crossearth_jax.aot.origins import NOTHING, Origin, shared_sizes

TRAINED, OF_BATCH = Origin(trainable=True, batch=False), Origin(trainable=False, batch=True)


def sizes(function, trained, frozen, batch):
    program = jax.jit(function).trace(trained, frozen, batch).jaxpr
    return shared_sizes(program, (TRAINED, NOTHING, OF_BATCH))


def test_products_of_parameters_are_shared_and_activations_are_not():
    def loss(weight, frozen, images):
        tokens = jnp.outer(weight, weight)  # 3 x 3, of what is trained
        frozen = jnp.outer(frozen, frozen)  # 5 x 5, of what is not
        return (images @ (tokens @ jnp.ones((3, 7)))).sum() * frozen.sum()

    found = sizes(loss, jnp.ones(3), jnp.ones(5), jnp.ones((11, 3)))
    assert {9, 21} <= found
    assert not found & {25, 33, 77}


def test_what_a_loop_carries_belongs_to_the_batch_once_it_has_met_it():
    def loss(weight, frozen, images):
        def body(carried, x):
            return (carried[0] + carried[1].sum(), carried[1] + images.sum()), jnp.outer(weight, x)

        (total, _), products = jax.lax.scan(body, (jnp.zeros(2), jnp.ones(4) * weight[0]), frozen)
        return jax.lax.cond(weight[0] > 0, lambda: total.sum() + products.sum(), lambda: images[0, 0])

    found = sizes(loss, jnp.ones(3), jnp.ones((5, 7)), jnp.ones((11, 13)))
    assert {21, 105} <= found  # a product of one layer, and those of all
    assert 2 not in found  # the sum depends on the batch from its second iteration on


def test_activations_of_the_backward_pass_are_of_the_batch():
    def step(weight, frozen, images):
        del frozen
        gradient = jax.grad(lambda w: jnp.tanh(images @ jnp.outer(w, w)).sum())(weight)
        return weight - gradient

    # The product does not depend on the batch; the gradient, of the weight's size, and later values do.
    assert 9 in sizes(step, jnp.ones(3), jnp.ones(1), jnp.ones((11, 3)))
    assert not {33, 11} & sizes(step, jnp.ones(3), jnp.ones(1), jnp.ones((11, 3)))
