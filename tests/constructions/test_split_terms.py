"""v, w and u are those of PyTorch."""

from construction_problems import by_hand, over_losses, random_embedding
from shared import close

from tinyspur.constructions.split_terms import map_values, output_derivatives, read_weights


@over_losses
def test_values_weights_and_derivatives_are_those_of_pytorch(loss):
    theta, pair, data, _ = random_embedding(0, loss, maps=(2, 3, 5, 6))
    u = output_derivatives(theta, data, loss)
    for k, m in enumerate(pair.relayed):
        v, w, derivative = by_hand(theta, pair, data, loss, m, k)
        close(map_values(theta, pair, m, data.x), v)
        close(read_weights(theta, pair, m)[k], w)
        close(u[k], derivative)
