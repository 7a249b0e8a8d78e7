#!/usr/bin/env bash
# Spreads the interrupts of a network card's queues over CPUs, and steers packets and sends to match.
#
#   tuning/nic-affinity.sh eth0                      prints what it would write (--dry-run, the default)
#   tuning/nic-affinity.sh --apply eth0              writes it; until the next start or change of the card's queues
#   tuning/nic-affinity.sh --cpus 0-7,16 eth0        only these CPUs, those of the shards; all that are online otherwise
#   tuning/nic-affinity.sh --flows 262144 eth0       connections with traffic at the same time, for the table of RFS
#   tuning/nic-affinity.sh --sys DIR eth0            looks for /sys and /proc below DIR
#
# Interrupt of queue i        -> CPU i modulo CPUs: the queues of a card arrive spread, not on one CPU.
# Receive queues >= CPUs      -> RPS and RFS off: the card spreads already, and steering again costs interrupts.
# Receive queues < CPUs       -> RPS over all CPUs, RFS to the CPU whose shard reads the connection.
# Sends (XPS)                 -> each CPU has one queue of its own, or shares one with as few as possible.
set -euo pipefail
shopt -s extglob

apply=false
root=
cpu_list=
# Deliveries a second x round trip = 1,000,000 x 0.2 s, as in the sysctl profiles, rounded up to a power of two. 8 B
# each.
flows=262144
interface=

fail() {
    echo "nic-affinity: $1" >&2
    exit "${2:-1}"
}

usage() {
    sed -n '2,8s/^# \{0,1\}//p' "$0"
}

while [ $# -gt 0 ]; do
    case $1 in
        --apply) apply=true ;;
        --dry-run) apply=false ;;
        --cpus | --sys | --flows)
            [ $# -ge 2 ] || fail "$1 needs a value" 2
            case $1 in
                --cpus) cpu_list=$2 ;;
                --sys) root=${2%/} ;;
                --flows) flows=$2 ;;
            esac
            shift
            ;;
        -h | --help)
            usage
            exit 0
            ;;
        -*) fail "no such flag: $1 (--help shows what there is)" 2 ;;
        *)
            [ -z "$interface" ] || fail "one interface at a time: $interface, $1" 2
            interface=$1
            ;;
    esac
    shift
done
[ -n "$interface" ] || fail "name an interface; ip link shows them" 2
[[ $flows =~ ^[1-9][0-9]{0,8}$ ]] || fail "--flows $flows: it must be a number from 1 to 999999999" 2
net=$root/sys/class/net/$interface
[ -d "$net/queues" ] || fail "$interface is no network interface here: $net/queues is not there"

# "0-2,5" as one number a line.
expand_cpus() {
    local part low high
    for part in ${1//,/ }; do
        [[ $part =~ ^[0-9]+(-[0-9]+)?$ ]] || fail "$1 is no list of CPUs, such as 0-7,16" 2
        low=${part%-*} high=${part#*-}
        seq "$low" "$high"
    done
}

# CPUs as the kernel's mask: groups of 32 bits in hexadecimal, the highest first.
mask_of() {
    local -a groups=(0)
    local cpu at text=
    for cpu in "$@"; do
        at=$((cpu / 32))
        while [ "${#groups[@]}" -le "$at" ]; do groups+=(0); done
        groups[at]=$((groups[at] | 1 << (cpu % 32)))
    done
    for ((at = ${#groups[@]} - 1; at >= 0; at--)); do
        if [ -z "$text" ]; then
            printf -v text '%x' "${groups[at]}"
        else
            printf -v text '%s,%08x' "$text" "${groups[at]}"
        fi
    done
    echo "$text"
}

# Masks are shown with leading zeros.
bare() {
    echo "${1##*([0,])}"
}

failures=0
# A value the file has already is not written again.
put() {
    local value=$1 file=$2
    [ -e "$file" ] || return 0
    if [ "$(bare "$(cat "$file" 2>/dev/null || echo unreadable)")" = "$(bare "$value")" ]; then
        echo "as wanted  $file = $value"
    elif ! $apply; then
        echo "would set  $file = $value"
    elif { echo "$value" >"$file"; } 2>/dev/null; then
        echo "set        $file = $value"
    else
        echo "FAILED     $file = $value" >&2
        failures=$((failures + 1))
    fi
}

# Interrupts of the card's queues: "number queue" a line. The names of interrupts that carry no packets are left out.
queue_irqs() {
    local device irq name number
    device=$(basename "$(readlink -f "$net/device" 2>/dev/null || true)")
    while read -r irq name; do
        case $name in
            "$interface"[-@:]* | "$interface") ;;
            "$device"-input.* | "$device"-output.*) ;;
            *) [ -e "$net/device/msi_irqs/$irq" ] || continue ;;
        esac
        case $name in
            *config* | *admin* | *mgmnt* | *async* | *event* | *pages* | *control*) continue ;;
        esac
        name=${name%%@*}
        number=${name##*[!0-9]}
        [ -n "$number" ] && echo "$irq $number"
    done < <(awk 'NR > 1 && $1 ~ /^[0-9]+:$/ { sub(":", "", $1); print $1, $NF }' "$root/proc/interrupts")
    return 0
}

[ -n "$cpu_list" ] || cpu_list=$(cat "$root/sys/devices/system/cpu/online" 2>/dev/null || true)
[ -n "$cpu_list" ] || fail "which CPUs are online cannot be read: give --cpus"
expanded=$(expand_cpus "$cpu_list") || exit $?
mapfile -t cpus <<<"$expanded"
mapfile -t receive < <(find "$net/queues" -maxdepth 1 -name 'rx-*' | sort -V)
mapfile -t send < <(find "$net/queues" -maxdepth 1 -name 'tx-*' | sort -V)
echo "$interface: ${#receive[@]} receive queues, ${#send[@]} send queues, ${#cpus[@]} CPUs"

found=0
while read -r irq number; do
    found=$((found + 1))
    put "${cpus[number % ${#cpus[@]}]}" "$root/proc/irq/$irq/smp_affinity_list"
done < <(queue_irqs)
[ "$found" -gt 0 ] ||
    echo "no interrupts of queues are named in /proc/interrupts: the driver spreads them itself, or has none"

if [ "${#receive[@]}" -ge "${#cpus[@]}" ]; then
    steer=0
    entries=0
else
    steer=$(mask_of "${cpus[@]}")
    entries=1
    while [ "$entries" -lt "$flows" ]; do entries=$((entries * 2)); done
fi
put "$entries" "$root/proc/sys/net/core/rps_sock_flow_entries"
for queue in "${receive[@]}"; do
    put "$steer" "$queue/rps_cpus"
    put "$((entries / ${#receive[@]}))" "$queue/rps_flow_cnt"
done

for at in "${!send[@]}"; do
    own=()
    for ((i = at % ${#cpus[@]}; i < ${#cpus[@]}; i += ${#send[@]})); do own+=("${cpus[i]}"); done
    put "$(mask_of "${own[@]}")" "${send[at]}/xps_cpus"
done

if [ -z "$root" ] && command -v pgrep >/dev/null && pgrep -x irqbalance >/dev/null; then
    echo "irqbalance is running and moves interrupts back: systemctl disable --now irqbalance," \
        "or ban these with IRQBALANCE_BANNED_INTERRUPTS"
fi
$apply || echo "nothing was written; --apply writes it"
[ "$failures" -eq 0 ] || fail "$failures could not be written: run it as root"
