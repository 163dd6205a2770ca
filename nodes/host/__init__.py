"""The one room that knows the host's internals: its Linear, its patcher, its model building, its folders."""
