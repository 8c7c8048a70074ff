# Stock targetcli and targetctl with the daemon in tcmu-runner's place: what an administrator does from the first backstore to the
# restart of the machine. targetcli takes five seconds to start under emulation: its commands come over standard input.
. "$(dirname "$0")/configfs.sh"
set -u
images=/mnt/images
mkdir -p /etc/target /etc/rtslib-fb-target
start_daemon || exit 1

# Commands on standard input; what it prints goes to /out/NAME.txt.
run_targetcli() { timeout 120 targetcli >"/out/$1.txt" 2>&1; }

cli_creates() {
  run_targetcli create <<CLI
/backstores ls
/backstores/user:qcow2 create name=q1 size=64M cfgstring=$images/q.qcow2 hw_max_sectors=2048 control=max_data_area_mb=64
/backstores/user:vmdk create name=m1 size=64M cfgstring=$images/m.vmdk
/backstores/user:vdi create name=v1 size=64M cfgstring=$images/v.vdi;readonly
/backstores/user:qcow2 create name=bad size=64M cfgstring=$images/missing.qcow2
/backstores/user:qcow2 create name=odd size=64M cfgstring=$images/q.qcow2;color=red
/iscsi create iqn.2026-11.org.example:t1
/iscsi/iqn.2026-11.org.example:t1/tpg1/luns create /backstores/user:qcow2/q1
/iscsi/iqn.2026-11.org.example:t1/tpg1/luns create /backstores/user:vmdk/m1
/iscsi/iqn.2026-11.org.example:t1/tpg1/luns create /backstores/user:vdi/v1
/iscsi/iqn.2026-11.org.example:t1/tpg1 set attribute authentication=0 demo_mode_write_protect=0 generate_node_acls=1 cache_dynamic_acls=1
/ ls
saveconfig /out/saved.json
exit
CLI
  for handler in qcow2 vmdk vdi raw image nbd qcow file; do
    grep -q "user:$handler " /out/create.txt || { echo "targetcli does not list user:$handler"; return 1; }
  done
  for name in q1 m1 v1; do
    grep -q "Created user-backed storage object $name" /out/create.txt || { echo "not created: $name"; return 1; }
  done
  # The reason is told before there is a device.
  grep -q 'cfgstring invalid: .*missing.qcow2' /out/create.txt || { echo "no reason for a missing image"; return 1; }
  grep -q 'cfgstring invalid: .*there is no option' /out/create.txt || { echo "no reason for an unknown option"; return 1; }
}

# tcmu-runner's policy lets every user call. Whether a file is there, and what is in it, only root is told.
others_learn_nothing() {
  local asked answers=()
  for asked in $images/q.qcow2 $images/missing.qcow2 $images/m.vmdk /etc/shadow /etc/missing; do
    answers+=("$(as_nobody qcow2 CheckConfig "string:qcow2/$asked")")
  done
  [ "$(printf '%s\n' "${answers[@]}" | sort -u)" = ' boolean true success' ] || { printf '%s\n' "${answers[@]}"; return 1; }
  as_nobody qcow2 CheckConfig 'string:qcow2/no/path;color=red' | grep -q 'boolean false' || return 1
  as_nobody image ChangeMedium string:q1 uint64:4096 string:image//etc/shadow | grep -q 'only root' || return 1
  as_nobody HandlerManager1 HandlerManager1.RegisterHandler string:evil string:evil | grep -q 'only root' || return 1
}
as_nobody() {
  setpriv --reuid=nobody --regid=nogroup --clear-groups dbus-send --system --print-reply=literal --dest=org.kernel.TCMUService1 \
    "/org/kernel/TCMUService1/$1" "org.kernel.TCMUService1.$2" "${@:3}" 2>&1 | tr -s '\n' ' ' | sed 's/ *$//'
}

url=iscsi://127.0.0.1/iqn.2026-11.org.example:t1
initiators_see_them() {
  for lun in 0 1 2; do
    iscsi-inq $url/$lun | grep -q 'Vendor:LIO-ORG' || { echo "LUN $lun"; return 1; }
  done
  iscsi-inq -e 1 -c 128 $url/0 | grep -q "$(serial_of q1)" || return 1
  # A read-only disk is one.
  qemu-img info -f raw "$url/2" >/dev/null || return 1
  ! qemu-io -f raw -c 'write 0 4096' "$url/2" >/dev/null 2>&1
}
serial_of() { cut -d: -f2 "$target"/core/user_*/"$1"/wwn/vpd_unit_serial | tr -d ' '; }

# A handler in a program of its own (docs/handlers.md), and images that QEMU opens for us: among them qcow of version 1, which is told so.
others_serve_beside_it() {
  /usr/bin/python3 "$root/docs/examples/ram-handler.py" >/out/ram.txt 2>&1 &
  local ram=$!
  for _ in $(seq 600); do
    grep -q '^registered' /out/ram.txt && break
    sleep 0.1
  done
  run_targetcli others <<CLI
/backstores ls
/backstores/user:ram create name=scratch size=16M cfgstring=anything
/backstores/user:qcow create name=direct size=16M cfgstring=$images/old.qcow
/backstores/user:qemu create name=old size=16M cfgstring=qcow/$images/old.qcow
/iscsi/iqn.2026-11.org.example:t1/tpg1/luns create /backstores/user:ram/scratch
/iscsi/iqn.2026-11.org.example:t1/tpg1/luns create /backstores/user:qemu/old
exit
CLI
  grep -q 'user:ram ' /out/others.txt || { cat /out/ram.txt /out/others.txt; return 1; }
  grep -q 'cfgstring invalid: .*version 1.*user:qemu with cfgstring=qcow/' /out/others.txt || { cat /out/others.txt; return 1; }
  local lun
  for lun in 3 4; do
    qemu-io -f raw -c 'write -P 0x77 3M 64k' -c flush -c 'read -P 0x77 3M 64k' $url/$lun >/out/lun.txt 2>&1 || { echo "LUN $lun"; cat /out/lun.txt /out/others.txt; return 1; }
    ! grep -q 'verification failed' /out/lun.txt || { echo "LUN $lun"; return 1; }
  done
  run_targetcli gone <<CLI
/backstores/user:ram delete scratch
/backstores/user:qemu delete old
exit
CLI
  kill $ram
  wait $ram
  [ "$(ls -d "$target"/core/user_*/* | grep -c 'scratch\|old')" = 0 ] || { cat /out/gone.txt; return 1; }
  qemu-io -r -f qcow -c 'read -P 0x77 3M 64k' $images/old.qcow | grep -q '^read 65536'
}

daemon_restarts() {
  qemu-io -f raw -c 'write -P 0x5a 1M 64k' -c flush $url/0 >/dev/null || return 1
  stop_daemon || return 1
  start_daemon || return 1
  grep -q 'taken over' /out/daemon.log || return 1
  qemu-io -f raw -c 'read -P 0x5a 1M 64k' $url/0 | grep -q '^read 65536' || return 1
  run_targetcli again </dev/null <<CLI
/backstores ls
exit
CLI
  grep -q 'user:qcow2.*Storage Objects: 1' /out/again.txt
}

# As at boot: everything is made anew from the saved configuration, every attribute written.
configuration_is_restored() {
  targetctl clear || return 1
  [ -z "$(ls "$target"/core | grep user_)" ] || { ls "$target"/core; return 1; }
  timeout 120 targetctl restore /out/saved.json >/out/restore.txt 2>&1 || { cat /out/restore.txt; return 1; }
  ! grep -qi 'error\|recoverable\|fail' /out/restore.txt || { cat /out/restore.txt; return 1; }
  qemu-io -f raw -c 'read -P 0x5a 1M 64k' $url/0 | grep -q '^read 65536'
}

# Growing a disk: the kernel's attribute, the image, and what initiators see.
a_disk_grows() {
  echo $((96 * 1024 * 1024)) >"$(ls -d "$target"/core/user_*/q1)/attrib/dev_size" || return 1
  qemu-img info -U $images/q.qcow2 | grep -q 'virtual size: 96 MiB' || return 1
  iscsi-readcapacity16 $url/0 | grep -q 'Total size:100663296' || { iscsi-readcapacity16 $url/0; return 1; }
  # Not smaller while it is in use, and what is no change is taken.
  ! echo $((32 * 1024 * 1024)) 2>/dev/null >"$(ls -d "$target"/core/user_*/q1)/attrib/dev_size"
}

everything_is_deleted() {
  run_targetcli delete <<CLI
/iscsi delete iqn.2026-11.org.example:t1
/backstores/user:qcow2 delete q1
/backstores/user:vmdk delete m1
/backstores/user:vdi delete v1
exit
CLI
  [ -z "$(ls "$target"/core | grep user_)" ] || return 1
  # The images are closed then: another program can have them.
  qemu-img check -q $images/q.qcow2 && qemu-img check -q $images/v.vdi
}

# A device that was made while nobody served is completed by the next daemon, and its creator hears so.
waiting_creator_is_answered() {
  kill -KILL $daemon
  wait $daemon 2>/dev/null
  (make_backstore qcow2 $images/q.qcow2 100663296 && echo made >/out/waiting.txt) &
  local creator=$!
  sleep 2
  start_daemon || return 1
  wait $creator
  grep -q made /out/waiting.txt && grep -q 'after its creator had waited' /out/daemon.log
  local status=$?
  remove_backstore "$target/core/user_1/disk1" && return $status
}

# A clean end: nobody waits for a daemon that is not there.
nobody_waits_after_the_end() {
  stop_daemon || return 1
  made=7
  local began=$SECONDS
  make_backstore qcow2 $images/q.qcow2 100663296 || return 1
  [ $((SECONDS - began)) -lt 5 ] || return 1
  remove_backstore "$backstore"
}

step cli_creates
step others_learn_nothing
step initiators_see_them
step others_serve_beside_it
step daemon_restarts
step configuration_is_restored
step a_disk_grows
step everything_is_deleted
step waiting_creator_is_answered
step nobody_waits_after_the_end
exit $failed
