package apiserver

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/validation"
	"sigs.k8s.io/mcs-api/pkg/apis/v1beta1"
	"sigs.k8s.io/network-policy-api/apis/v1alpha2"
	"sigs.k8s.io/yaml"
)

// scheme holds the five API groups a source delivers from and no more: the
// whole client-go scheme costs every start and every build dearly.
var scheme = func() *runtime.Scheme {
	s := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{corev1.AddToScheme, discoveryv1.AddToScheme, networkingv1.AddToScheme, v1alpha2.Install, v1beta1.Install} {
		if err := add(s); err != nil {
			panic(err)
		}
	}
	s.AddKnownTypes(clusterPolicyBeta, &v1alpha2.ClusterNetworkPolicy{})
	s.AddKnownTypes(serviceExportAlpha, &v1beta1.ServiceExport{})
	return s
}()

var decoder = serializer.NewCodecFactory(scheme, serializer.EnableStrict).UniversalDeserializer()

// clusterPolicyBeta is the newer version of ClusterNetworkPolicy: another name
// for the same fields.
var clusterPolicyBeta = schema.GroupVersion{Group: v1alpha2.GroupName, Version: "v1beta1"}

// serviceExportAlpha is the older version of ServiceExport: another name for the
// same fields.
var serviceExportAlpha = schema.GroupVersion{Group: v1beta1.GroupName, Version: "v1alpha1"}

// namespaced are the kinds a source delivers, and whether they live in a namespace.
var namespaced = map[string]bool{
	KindService: true, KindPod: true, KindNetworkPolicy: true, KindEndpointSlice: true, KindServiceExport: true,
	KindNode: false, KindNamespace: false, KindClusterNetworkPolicy: false,
}

// object is one Kubernetes object of a manifest.
type object struct {
	ref Ref
	obj runtime.Object
}

// document is one YAML document of a manifest, taken apart.
type document struct {
	sum      [sha256.Size]byte // of the text: an unchanged document is not parsed again
	line     int               // of its first line in the file, from 1
	objects  []object
	notes    []string // ignored kinds
	warnings []string // fields nobody knows
}

// decodeManifest takes a file apart. Documents that old holds already are
// taken from there. The error names the document and the line.
func decodeManifest(text []byte, old []document) ([]document, error) {
	known := make(map[[sha256.Size]byte]*document, len(old))
	for i := range old {
		known[old[i].sum] = &old[i]
	}
	var docs []document
	for i, part := range splitDocuments(text) {
		sum := sha256.Sum256(part.text)
		if d, ok := known[sum]; ok {
			again := *d
			again.line = part.line
			docs = append(docs, again)
			continue
		}
		d := document{sum: sum, line: part.line}
		if err := d.decode(part.text); err != nil {
			return nil, fmt.Errorf("document %d, line %d: %w", i+1, errorLine(err, part.line), err)
		}
		docs = append(docs, d)
	}
	return docs, nil
}

type textPart struct {
	text []byte
	line int
}

// splitDocuments cuts at lines that begin with "---". Parts without content are
// left out.
func splitDocuments(text []byte) []textPart {
	var parts []textPart
	start, startLine, line := 0, 1, 0
	flush := func(end, nextStart, nextLine int) {
		if part := text[start:end]; hasContent(part) {
			parts = append(parts, textPart{part, startLine})
		}
		start, startLine = nextStart, nextLine
	}
	for at := 0; at < len(text); {
		line++
		end := bytes.IndexByte(text[at:], '\n')
		next := len(text)
		if end >= 0 {
			next = at + end + 1
		}
		l := bytes.TrimRight(text[at:next], " \t\r\n")
		if bytes.Equal(l, []byte("---")) || bytes.HasPrefix(l, []byte("--- #")) {
			flush(at, next, line+1)
		}
		at = next
	}
	flush(len(text), len(text), line)
	return parts
}

// hasContent: anything beside comments and space.
func hasContent(text []byte) bool {
	for len(text) > 0 {
		var line []byte
		line, text, _ = bytes.Cut(text, []byte("\n"))
		line = bytes.TrimSpace(line)
		if len(line) > 0 && line[0] != '#' {
			return true
		}
	}
	return false
}

var yamlLine = regexp.MustCompile(`line (\d+)`)

// errorLine is the line of the file that err is about: a YAML error counts from
// its document's first line; others are about the document.
func errorLine(err error, first int) int {
	var y *yamlError
	if errors.As(err, &y) {
		if m := yamlLine.FindStringSubmatch(y.err.Error()); m != nil {
			n, _ := strconv.Atoi(m[1])
			return first + max(n, 1) - 1
		}
	}
	return first
}

// yamlError is a document that is not YAML. Its text leaves out the line, which
// counts from the document and would mislead.
type yamlError struct{ err error }

func (e *yamlError) Unwrap() error { return e.err }
func (e *yamlError) Error() string {
	s := strings.TrimPrefix(e.err.Error(), "error converting YAML to JSON: ")
	s = strings.TrimPrefix(s, "yaml: ")
	if m := yamlLine.FindStringIndex(s); m != nil && m[0] == 0 {
		s = strings.TrimPrefix(s[m[1]:], ": ")
	}
	return "not valid YAML: " + s
}

func (d *document) decode(text []byte) error {
	if t := bytes.TrimSpace(text); len(t) == 0 || t[0] != '{' {
		converted, err := yaml.YAMLToJSONStrict(text)
		if err != nil {
			return &yamlError{err}
		}
		text = converted
	}
	return d.add(text, "", "")
}

// add decodes one object, or each item of a list. Items of a typed list may
// leave out their kind: it is the list's.
func (d *document) add(text []byte, apiVersion, kind string) error {
	var head struct {
		APIVersion string            `json:"apiVersion"`
		Kind       string            `json:"kind"`
		Items      []json.RawMessage `json:"items"`
	}
	if err := json.Unmarshal(text, &head); err != nil {
		return fmt.Errorf("not a Kubernetes object: %w", err)
	}
	if head.Kind == "" {
		head.Kind, head.APIVersion = kind, apiVersion
	}
	if head.Kind == "" || head.APIVersion == "" {
		return errors.New("not a Kubernetes object: apiVersion or kind is missing")
	}
	if of, ok := strings.CutSuffix(head.Kind, "List"); ok && (of == "" || head.Items != nil) {
		itemVersion := head.APIVersion
		if of == "" {
			itemVersion = ""
		}
		for i, item := range head.Items {
			if err := d.add(item, itemVersion, of); err != nil {
				return fmt.Errorf("item %d of the list: %w", i+1, err)
			}
		}
		return nil
	}
	return d.addObject(text, head.APIVersion, head.Kind)
}

func (d *document) addObject(text []byte, apiVersion, kind string) error {
	gvk, err := parseGVK(apiVersion, kind)
	if err != nil {
		return err
	}
	inNamespace, wanted := namespaced[kind]
	if !wanted || !scheme.Recognizes(gvk) {
		d.notes = append(d.notes, fmt.Sprintf("%s of %s is ignored: only Service, Pod, Node, Namespace, NetworkPolicy, ClusterNetworkPolicy, EndpointSlice and ServiceExport are read", kind, apiVersion))
		return nil
	}
	obj, _, err := decoder.Decode(text, &gvk, nil)
	if err != nil && runtime.IsStrictDecodingError(err) && obj != nil {
		d.warnings = append(d.warnings, err.Error())
		err = nil
	}
	if err != nil {
		return fmt.Errorf("%s: %w", kind, err)
	}
	m, err := meta.Accessor(obj)
	if err != nil {
		return fmt.Errorf("%s: %w", kind, err)
	}
	if inNamespace && m.GetNamespace() == "" {
		m.SetNamespace("default")
	}
	if !inNamespace {
		m.SetNamespace("")
	}
	ref := Ref{Kind: kind, Namespace: m.GetNamespace(), Name: m.GetName()}
	if bad := validation.IsDNS1123Subdomain(ref.Name); len(bad) > 0 {
		return fmt.Errorf("%s: metadata.name %q is not a valid name: %s", kind, ref.Name, bad[0])
	}
	if bad := validation.IsDNS1123Label(ref.Namespace); inNamespace && len(bad) > 0 {
		return fmt.Errorf("%s %s: metadata.namespace %q is not a valid name: %s", kind, ref.Name, ref.Namespace, bad[0])
	}
	if p, ok := obj.(*v1alpha2.ClusterNetworkPolicy); ok {
		obj = &clusterPolicy{p, lacking(text)}
	}
	d.objects = append(d.objects, object{ref, obj})
	return nil
}

// DecodeClusterNetworkPolicy reads one policy from its JSON, as a Source delivers
// it. unknown names fields that have no effect.
func DecodeClusterNetworkPolicy(text []byte) (policy runtime.Object, unknown string, err error) {
	var d document
	if err := d.decode(text); err != nil {
		return nil, "", err
	}
	if len(d.objects) != 1 || d.objects[0].ref.Kind != KindClusterNetworkPolicy {
		return nil, "", errors.New("not a ClusterNetworkPolicy of a version that is known here")
	}
	return d.objects[0].obj, strings.Join(d.warnings, "; "), nil
}

func parseGVK(apiVersion, kind string) (schema.GroupVersionKind, error) {
	gv, err := schema.ParseGroupVersion(apiVersion)
	if err != nil {
		return schema.GroupVersionKind{}, fmt.Errorf("apiVersion %q of the %s is not group/version", apiVersion, kind)
	}
	return gv.WithKind(kind), nil
}
