{{/* Names of the parts are fixed: certificates, webhook configurations and proxies refer to them. One Weft per cluster. */}}

{{/* Labels of every object. Usage: include "weft.labels" (list $ "operator") */}}
{{- define "weft.labels" -}}
{{- $root := index . 0 -}}
{{- $part := index . 1 -}}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "weft.selector" . }}
app.kubernetes.io/part-of: weft
app.kubernetes.io/component: {{ $part }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
{{- with $root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* What selects the pods of a part; never changes between versions. */}}
{{- define "weft.selector" -}}
app.kubernetes.io/name: weft-{{ index . 1 }}
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
{{- end }}

{{/* Full image name. Usage: include "weft.image" (list $ "proxy") */}}
{{- define "weft.image" -}}
{{- $image := (index . 0).Values.image -}}
{{ $image.registry }}/weft-{{ index . 1 }}:{{ $image.tag | default (index . 0).Chart.AppVersion }}
{{- end }}

{{/* Number of replicas of a part: its own value, else the profile's. */}}
{{- define "weft.replicas" -}}
{{- $own := (index (index . 0).Values (index . 1)).replicas -}}
{{- if kindIs "invalid" $own -}}
{{ ternary 1 2 (eq (index . 0).Values.profile "one-node") }}
{{- else -}}
{{ int $own }}
{{- end -}}
{{- end }}

{{/* Namespaces in which nothing is ever injected. */}}
{{- define "weft.neverInjected" -}}
- key: kubernetes.io/metadata.name
  operator: NotIn
  values: [kube-system, kube-public, kube-node-lease, {{ .Release.Namespace }}]
{{- end }}

{{/* Security contexts that pass the `restricted` Pod Security Standard. */}}
{{- define "weft.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end }}
{{- define "weft.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* What both Deployments' pods have in common: placement, pull secrets, grace. Usage: include "weft.podCommon" (list $ "operator") */}}
{{- define "weft.podCommon" -}}
{{- $root := index . 0 -}}
{{- $part := index . 1 -}}
{{- $values := index $root.Values $part -}}
serviceAccountName: weft-{{ $part }}
terminationGracePeriodSeconds: {{ $values.terminationGracePeriodSeconds }}
securityContext:
  {{- include "weft.podSecurity" . | nindent 2 }}
{{- with $root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with $values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
nodeSelector:
  kubernetes.io/os: linux
  {{- with $values.nodeSelector }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with $values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- if gt (int (include "weft.replicas" .)) 1 }}
affinity:
  podAntiAffinity:
    preferredDuringSchedulingIgnoredDuringExecution:
      - weight: 100
        podAffinityTerm:
          topologyKey: kubernetes.io/hostname
          labelSelector:
            matchLabels:
              {{- include "weft.selector" . | nindent 14 }}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: topology.kubernetes.io/zone
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "weft.selector" . | nindent 8 }}
{{- end }}
{{- end }}

{{/* Probes of operator and webhook. Start-up may wait for the first certificate and the first lists. */}}
{{- define "weft.probes" -}}
startupProbe:
  httpGet: {path: /live, port: metrics}
  periodSeconds: 1
  failureThreshold: 60
readinessProbe:
  httpGet: {path: /ready, port: metrics}
  periodSeconds: 2
  failureThreshold: 2
livenessProbe:
  httpGet: {path: /live, port: metrics}
  periodSeconds: 10
  failureThreshold: 3
{{- end }}
