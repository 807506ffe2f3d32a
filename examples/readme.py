import jax
import jax.numpy as jnp
import optax

import fedjax_agg as fa

x = jax.random.normal(jax.random.key(0), (8, 32, 3))  # 8 clients, 32 examples each
y = x @ jnp.array([1.0, -2.0, 0.5])
params = jnp.zeros(3)
grads_of_clients = jax.vmap(jax.grad(lambda w, x, y: jnp.mean((x @ w - y) ** 2)), (None, 0, 0))

plan = fa.plan_round(params, num_clients=8, clip=4.0, bits=16)  # proves that no sum wraps
aggregate = fa.secure_aggregate(plan.codec(), fa.SecAgg(group=plan.group), num_clients=8)
rule = fa.apply_if_ok(aggregate, optax.adam(0.1))
state, seed = rule.init(params), fa.root_seed()


@jax.jit
def train_round(params, state, seed, round_id):
    session = fa.simulated_session(seed, num_clients=8, round_id=round_id)
    updates, state = rule.update(grads_of_clients(params, x, y), state, params, session=session)
    return optax.apply_updates(params, updates), state


for round_id in range(100):
    params, state = train_round(params, state, seed, round_id)
print(params.round(2), "ok:", state.aggregate.report.ok)
