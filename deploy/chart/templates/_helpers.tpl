{{/* Names and labels. The names are fixed: a cluster has one Tombolo, and its own programs look for them. */}}
{{- define "tombolo.labels" -}}
app.kubernetes.io/name: {{ .name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/part-of: tombolo
app.kubernetes.io/version: {{ .root.Chart.AppVersion | trunc 63 | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
{{- end }}

{{- define "tombolo.image" -}}
{{- $i := .Values.image -}}
{{- if $i.digest -}}{{ $i.repository }}@{{ $i.digest }}{{- else -}}{{ $i.repository }}:{{ $i.tag | default .Chart.AppVersion }}{{- end -}}
{{- end }}

{{- define "tombolo.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
{{- range . }}
- name: {{ . }}
{{- end }}
{{- end }}
{{- end }}

{{/* The node that holds the state of the embedded etcd: what is said, else what was chosen before, else the
first control plane node, else the first node. */}}
{{- define "tombolo.stateNode" -}}
{{- $said := .Values.apiserver.storage.node -}}
{{- $before := "" -}}
{{- with lookup "apps/v1" "StatefulSet" .Release.Namespace "tombolo-apiserver" -}}
{{- $before = dig "metadata" "annotations" "tombolo.io/state-node" "" . -}}
{{- end -}}
{{- if and $said $before (ne $said $before) (not .Values.apiserver.storage.moved) -}}
{{- fail (printf "apiserver.storage.node is %s, but the mesh API server's state lies on node %s. Copy %s from there to %s and set apiserver.storage.moved=true; or leave the node as it was" $said $before .Values.apiserver.storage.path $said) -}}
{{- end -}}
{{- $chosen := coalesce $said $before -}}
{{- if not $chosen -}}
{{- $control := list -}}
{{- $all := list -}}
{{- range (dig "items" list (lookup "v1" "Node" "" "" | default dict)) -}}
{{- $all = append $all .metadata.name -}}
{{- if hasKey (.metadata.labels | default dict) "node-role.kubernetes.io/control-plane" -}}{{- $control = append $control .metadata.name -}}{{- end -}}
{{- end -}}
{{- $chosen = concat (sortAlpha $control) (sortAlpha $all) | first -}}
{{- end -}}
{{- required "apiserver.storage.node is empty and the cluster cannot be asked for its nodes: name the node that shall hold the mesh API server's state" $chosen -}}
{{- end }}

{{/* Terms of a node affinity that select nodes by name. */}}
{{- define "tombolo.onNodes" -}}
nodeAffinity:
  requiredDuringSchedulingIgnoredDuringExecution:
    nodeSelectorTerms:
    {{- range . }}
    - matchFields:
      - {key: metadata.name, operator: In, values: [{{ . | quote }}]}
    {{- end }}
{{- end }}

{{/* Real address of kube-apiserver, as YAML of host and port. */}}
{{- define "tombolo.kubernetes" -}}
{{- $host := .Values.kubernetes.host -}}
{{- $port := .Values.kubernetes.port -}}
{{- if not $host -}}
{{- with lookup "discovery.k8s.io/v1" "EndpointSlice" "default" "kubernetes" -}}
{{- $host = (index (index .endpoints 0).addresses 0) -}}
{{- $port = $port | default (index .ports 0).port -}}
{{- end -}}
{{- end -}}
{{- $why := "kubernetes.host is empty and the cluster cannot be asked for it: give the address at which nodes reach kube-apiserver without any Service (a control plane's, or that of the load balancer in front of them)" -}}
host: {{ required $why $host | quote }}
port: {{ $port | default 6443 | int }}
{{- end }}

{{/* What schemas cannot say, in words. */}}
{{- define "tombolo.validate" -}}
{{- $v := .Values -}}
{{- if not $v.cluster.name }}{{ fail "cluster.name is empty: name this cluster, uniquely in the mesh, for example --set cluster.name=aws" }}{{ end -}}
{{- if not $v.cluster.id }}{{ fail "cluster.id is 0: number this cluster, uniquely in the mesh, from 1 to 4095, for example --set cluster.id=1" }}{{ end -}}
{{- if and (eq $v.etcd.mode "embedded") (gt (int $v.apiserver.replicas) 1) }}{{ fail (printf "apiserver.replicas is %d with an embedded etcd, which is that of one process: set etcd.mode to members or external, or replicas to 1" (int $v.apiserver.replicas)) }}{{ end -}}
{{- if eq $v.etcd.mode "members" }}
{{- $n := len $v.etcd.members.nodes }}
{{- if not (has $n (list 3 5)) }}{{ fail (printf "etcd.members.nodes has %d: three or five nodes hold a member each, as {node: NAME, address: IP}" $n) }}{{ end }}
{{- $names := list }}{{- $families := list }}
{{- range $v.etcd.members.nodes }}{{ $names = append $names .node }}{{ $families = append $families (contains ":" .address) }}{{ end }}
{{- if gt (len (uniq $families)) 1 }}{{ fail "etcd.members.nodes mixes IPv4 and IPv6 addresses: give each node's first InternalIP, which are of one family" }}{{ end }}
{{- if ne (len (uniq $names)) $n }}{{ fail "etcd.members.nodes names a node twice: two members on one node fail together" }}{{ end }}
{{- end -}}
{{- if eq $v.etcd.mode "external" }}
{{- if not $v.etcd.external.endpoints }}{{ fail "etcd.external.endpoints is empty: give the URLs of the etcd, or set etcd.mode to embedded" }}{{ end }}
{{- if not $v.etcd.external.secretName }}{{ fail "etcd.external.secretName is empty: name the Secret with the etcd's ca.crt and the client's tls.crt and tls.key" }}{{ end }}
{{- end -}}
{{- if and $v.metrics.podMonitor.enabled (not $v.metrics.expose) }}{{ fail "metrics.podMonitor.enabled needs metrics.expose: on loopback Prometheus reaches nothing" }}{{ end -}}
{{- end }}
