"""Networks: activations, blocks, backbones, necks, heads and the models made of them."""
