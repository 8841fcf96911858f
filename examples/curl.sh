#!/usr/bin/env bash
# Asks a running server (`make api`) for its models, for an ad, and for an ad as a stream of events.
# BASE_URL in the environment names another server, and API_KEY is its key.
set -euo pipefail
base=${BASE_URL:-http://127.0.0.1:8000}/v1
ask=(curl --silent --show-error --fail-with-body --noproxy 127.0.0.1 --header "Authorization: Bearer ${API_KEY:-}")

"${ask[@]}" "$base/models"
echo

"${ask[@]}" "$base/chat/completions" --header 'Content-Type: application/json' --data '{
  "model": "any", "messages": [{"role": "user", "content": "类型#口红*质地#丝绒*功效#显白*场景#约会"}]
}'
echo

"${ask[@]}" "$base/chat/completions" --no-buffer --header 'Content-Type: application/json' --data '{
  "model": "any", "messages": [{"role": "user", "content": "类型#耳机*连接#蓝牙*功能#降噪"}], "stream": true
}'
