// tombolo-cni is the CNI plugin that the kubelet (or another runtime) calls for
// each pod. It is a thin client of the node's agent: it holds no state, decides
// nothing, and says why when the agent cannot serve it.
package main

import (
	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/version"
)

const about = `tombolo-cni connects pods to the Tombolo mesh, by way of the agent on this node.
The runtime calls it with a configuration on stdin:
  {"cniVersion":"1.1.0","name":"tombolo","type":"tombolo-cni","socket":"/run/tombolo/agent.sock",
   "deletions":"/var/lib/tombolo/agent/deletions","deadline":"60s"}
ADD waits for an agent that starts until the deadline; DEL without an agent is noted in the
directory "deletions", for the agent to carry out when it is back.`

func main() {
	skel.PluginMainFuncs(skel.CNIFuncs{Add: add, Del: del, Check: check, GC: gc, Status: status}, version.All, about)
}
