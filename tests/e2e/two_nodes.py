"""Runs a job on a cluster of two nodes on this machine and prints which node is which. Started by
`test_two_nodes`.
"""

import json
import sys

import ray
from ray.cluster_utils import Cluster

from sluice.services.config import load_config
from sluice.services.run.train import run_training
from sluice.services.submit.head import free_ports

if __name__ == "__main__":
    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 1,
            "resources": {"learner": 1},
            "include_dashboard": True,
            "dashboard_port": free_ports([8265])[0],  # another cluster of this machine may have the usual one
        },
    )
    rollout_node = cluster.add_node(num_cpus=1, resources={"rollout": 1})
    cluster.wait_for_nodes()
    ray.init(address=cluster.address, namespace="sluice")
    try:
        code = run_training(load_config(sys.argv[1], sys.argv[2:]))
        print(json.dumps({"learner": cluster.head_node.node_id, "rollout": rollout_node.node_id}))
    finally:
        ray.shutdown()
        cluster.shutdown()
    sys.exit(code)
