"""The node's CNI plugin: what the runtime asks for, who is asked for it, and how the plugin comes into the chain."""
