// Allows functions without a body (kube_test.go).
