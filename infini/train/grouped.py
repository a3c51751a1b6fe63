from infini.lax import expert_layer as expert_layer
