package manifest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"strconv"
	"strings"

	"sigs.k8s.io/yaml"
)

// part is one document of a file.
type part struct {
	text []byte
	line int // of its first line in the file, from 1
}

// split cuts at lines that begin with "---", and leaves out what has no content.
func split(text []byte) []part {
	var parts []part
	now, line := part{line: 1}, 0
	flush := func() {
		if hasContent(now.text) {
			parts = append(parts, now)
		}
	}
	for l := range bytes.Lines(text) {
		line++
		if trimmed := bytes.TrimRight(l, " \t\r\n"); bytes.Equal(trimmed, []byte("---")) || bytes.HasPrefix(trimmed, []byte("--- #")) {
			flush()
			now = part{line: line + 1}
			continue
		}
		now.text = append(now.text, l...)
	}
	flush()
	return parts
}

// hasContent: anything beside comments and space.
func hasContent(text []byte) bool {
	for l := range bytes.Lines(text) {
		if l = bytes.TrimSpace(l); len(l) > 0 && l[0] != '#' {
			return true
		}
	}
	return false
}

var yamlLine = regexp.MustCompile(`(?:yaml: )?line (\d+): `)

// toJSON converts a document; JSON is taken as it is. Lines in errors count from
// the top of the file.
func toJSON(p part) ([]byte, error) {
	if t := bytes.TrimSpace(p.text); t[0] == '{' {
		return t, nil
	}
	text, err := yaml.YAMLToJSONStrict(p.text)
	if err != nil {
		s := strings.TrimPrefix(err.Error(), "error converting YAML to JSON: ")
		s = yamlLine.ReplaceAllStringFunc(s, func(m string) string {
			n, _ := strconv.Atoi(yamlLine.FindStringSubmatch(m)[1])
			return fmt.Sprintf("line %d: ", p.line+max(n, 1)-1)
		})
		return nil, fmt.Errorf("not valid YAML: %s", strings.TrimPrefix(s, "yaml: "))
	}
	return text, nil
}

// decode is json.Unmarshal with errors that name the field.
func decode(what string, text []byte, v any) error {
	err := json.Unmarshal(text, v)
	var bad *json.UnmarshalTypeError
	if errors.As(err, &bad) {
		field := strings.Trim(what+"."+bad.Field, ".")
		if field == "" {
			return fmt.Errorf("%s where an object belongs", article(bad.Value))
		}
		return fmt.Errorf("%s holds %s where %s belongs", field, article(bad.Value), kindText(bad.Type))
	}
	if err != nil {
		return fmt.Errorf("not valid JSON: %w", err)
	}
	return nil
}

func article(noun string) string {
	if strings.ContainsRune("aeiou", rune(noun[0])) {
		return "an " + noun
	}
	return "a " + noun
}

// kindText is a type as somebody who writes YAML calls it.
func kindText(t reflect.Type) string {
	switch t.Kind() {
	case reflect.Map, reflect.Struct:
		return "an object"
	case reflect.Slice:
		return "a list"
	case reflect.String:
		return "a string"
	case reflect.Bool:
		return "true or false"
	}
	return "a number"
}
