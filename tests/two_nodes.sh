#!/usr/bin/env bash
# Two machines on one: two network namespaces with a cable between them, and in each `make train NNODES=2` of the tiny recipe.
#   tests/two_nodes.sh FOLDER [words for make]     trains in the project's FOLDER; needs root and `ip netns`
set -euo pipefail
cd "$1"; shift
zero=node0-$$ one=node1-$$
if ! command -v ip > /dev/null || ! ip netns add $zero 2> /dev/null; then
  echo "skipped: two nodes need root and ip netns (iproute2)"; exit 77
fi
trap 'ip netns del $zero; ip netns del $one 2> /dev/null || true' EXIT
ip netns add $one
ip link add cable netns $zero type veth peer name cable netns $one
ip -n $zero addr add 10.77.0.1/24 dev cable
ip -n $one addr add 10.77.0.2/24 dev cable
for node in $zero $one; do ip -n $node link set cable up; ip -n $node link set lo up; done
export GLOO_SOCKET_IFNAME=cable
train() { # namespace, rank
  ip netns exec $1 make train MODEL=tiny METHOD=lora DATA=sample NNODES=2 NODE_RANK=$2 MASTER_ADDR=10.77.0.1 MASTER_PORT=29500 "${@:3}"
}
train $one 1 "$@" & other=$!
train $zero 0 "$@"
wait $other
