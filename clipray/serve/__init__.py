"""The service: an HTTP ingress that encodes, fans out to groups of shards, and merges.

`app` builds it and `local` starts it on this machine; `search` is the ingress deployment,
`replicas` and `encoding` are those behind it, `http` is the API that the ingress speaks.
"""
