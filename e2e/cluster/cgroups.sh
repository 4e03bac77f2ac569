# The cgroups of a node: made before its kubelet starts (it refuses a root that is not there), removed after its last process has
# ended. All of a node's pods lie below one group of our own; on cgroup v1 there is one in each hierarchy. Sourced by up.sh and down.sh.
# shellcheck shell=bash

cgroup_of() { echo "weft-$NAME-$1"; }
is_v2() { [ -f /sys/fs/cgroup/cgroup.controllers ]; }
hierarchies() { if is_v2; then echo /sys/fs/cgroup; else echo /sys/fs/cgroup/*; fi; }

make_cgroups() { # NODE
  local root group controller
  for root in $(hierarchies); do
    group=$root/$(cgroup_of "$1")
    if is_v2; then
      mkdir -p "$group"
      for controller in cpu cpuset memory pids io hugetlb; do
        echo "+$controller" >"$root/cgroup.subtree_control" || true
        echo "+$controller" >"$group/cgroup.subtree_control" || true
      done 2>/dev/null
    elif [ "${root##*/}" != unified ] && [ ! -L "$root" ]; then # unified has no controllers here; runc makes what it needs in it
      mkdir -p "$group"
      [ -e "$root/cpuset.cpus" ] || continue
      cat "$root/cpuset.cpus" >"$group/cpuset.cpus"
      cat "$root/cpuset.mems" >"$group/cpuset.mems"
    fi
  done
}

remove_cgroups() { # NODE
  local root group deadline=$((SECONDS + 10))
  for root in $(hierarchies); do
    group=$root/$(cgroup_of "$1")
    while [ -d "$group" ]; do
      find "$group" -depth -type d -exec rmdir {} + 2>/dev/null || true
      [ -d "$group" ] || break
      ((SECONDS < deadline)) || { say "left behind: $group"; break; }
      sleep 0.1
    done
  done
}
