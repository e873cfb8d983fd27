"""Serving thousands of tasks behind one address.

Module | Role
-------|-----
`engine` | requests of all tasks to answers, in shared batches
`images` | images of requests to arrays, or refused
`catalog` | which tasks there are: the patch files of a folder, local or remote
`protocol` | TensorFlow Serving's REST and gRPC messages
`server` | the three together, as one HTTP and gRPC handler
`grpc_server`, `metrics` | parts of the server
`deployment` | the handler as a Ray Serve deployment; the only module that imports Ray
"""
