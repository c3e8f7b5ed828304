"""The service: an HTTP ingress that encodes, fans out to groups of shards, and merges.

`app` builds and starts it, `search` is the ingress deployment, `replicas` are the deployments
behind it, `http` is the API that the ingress speaks.
"""
