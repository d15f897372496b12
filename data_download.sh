#!/usr/bin/env bash
# Downloads the public data sets, and checks those that need registration. ./data_download.sh --help tells more.
# Works with bash 3.2 and the BSD tools of macOS.
set -euo pipefail

IXI_URL=${MADAD_IXI_URL:-http://biomedic.doc.ic.ac.uk/brain-development/downloads/IXI}
MSD_URL=${MADAD_MSD_URL:-https://msd-for-monai.s3-us-west-2.amazonaws.com}
TRIES=${MADAD_TRIES:-5}
UNPACKED_PERCENT=105 # of the archive's size: the scans in it are compressed already

usage() {
    cat << 'TEXT'
usage: ./data_download.sh SET [--out DIR]

Downloads a data set to DIR/SET (default: data/SET), checks it and unpacks it. An interrupted download goes on where it
stopped when the command is given again; a data set that is there already is left alone.

  ixi-t1      IXI, T1: 581 healthy people                about 5 GB   CC BY-SA 3.0
  ixi-t2      IXI, T2: 578 healthy people                about 4 GB   CC BY-SA 3.0
  msd-brain   Decathlon Task01: 484 glioma patients      about 7 GB   CC BY-SA 4.0
              with T1, T1CE, T2 and FLAIR
  atlas       ATLAS 2.0: 655 stroke patients, T1         needs registration: prints the steps and
  brats       BraTS'21: 1251 glioma patients,            checks what you have unpacked to DIR/SET
              T1, T1CE, T2 and FLAIR

While it downloads and unpacks, a data set needs about twice its size of free space.

Variables:
  MADAD_IXI_URL, MADAD_MSD_URL   folder of the archives on another server
  MADAD_MD5                      md5 sum to expect instead of the published one
  MADAD_TRIES                    tries before a broken connection is an error (default 5)
TEXT
}

say() { printf '%s\n' "$*"; }
die() { printf 'data_download.sh: %s\n' "$@" >&2; exit 1; }
refuse() { printf 'data_download.sh: %s\nTry: ./data_download.sh --help\n' "$1" >&2; exit 2; }
human() { awk -v b="$1" 'BEGIN { if (b < 1e8) printf "%.1f MB", b / 1e6; else printf "%.1f GB", b / 1e9 }'; }
bytes_of() { if [ -f "$1" ]; then wc -c < "$1" | tr -d ' '; else echo 0; fi; }
count() { find "$1" "${@:2}" ! -name '._*' | wc -l | tr -d ' '; }

md5_of() { # macOS has md5, Linux md5sum
    if command -v md5sum > /dev/null; then md5sum < "$1" | cut -d ' ' -f 1; else md5 -q "$1"; fi
}

content_length() { # of the file at an address; nothing where the server does not say. Redirects and errors have lengths too
    { curl -sIL --connect-timeout 30 --max-time 60 "$1" 2> /dev/null || true; } | tr -d '\r' |
        awk '/^HTTP\// { code = $2; n = 0 } tolower($1) == "content-length:" { n = $2 } END { if (code == 200 && n > 0) print n }'
}

check_space() { # bytes that will be needed
    local free
    free=$(df -Pk "$OUT" | awk 'NR == 2 { printf "%.0f", $(NF - 2) * 1024 }')
    [ "$free" -ge "$1" ] ||
        die "$OUT: $(human "$1") are needed and $(human "$free") are free; make room or choose another disk with --out DIR"
}

download() { # address, file, size or nothing: goes on with what the file holds
    local url=$1 file=$2 size=$3 try=1 code http what progress=-sS
    if [ -t 2 ]; then progress=--progress-bar; fi
    while [ -z "$size" ] || [ "$(bytes_of "$file")" -ne "$size" ]; do
        code=0
        http=$(curl -fL "$progress" --connect-timeout 30 --speed-limit 1000 --speed-time 60 -w '%{http_code}' \
            -C - -o "$file" "$url") || code=$?
        if [ "$code" -eq 0 ]; then break; fi
        case $code:$http in
            22:416) break ;; # nothing comes after what the file holds; the md5 sum will tell
            22:4*) die "$url: the server answers $http. Has the file moved? MADAD_IXI_URL or MADAD_MSD_URL name another server." ;;
            47:*) die "$url: the server sends in circles (too many redirects). MADAD_IXI_URL or MADAD_MSD_URL name another server." ;;
            23:*) die "$file: cannot be written (curl error 23); is the disk full? Make room, then give the same command again." ;;
            5:* | 6:* | 7:*) die "$url: the server cannot be reached (curl error $code); is the network there? Then give the same command again." ;;
            33:* | 36:*) # the server cannot send the rest alone
                say "the server cannot go on where it stopped: from the start again"
                rm -f "$file" ;;
        esac
        if [ "$code" -eq 22 ]; then what="the server answers $http"; else what="the connection broke (curl error $code)"; fi
        if [ "$try" -ge "$TRIES" ]; then
            [ "$code" -ne 22 ] || die "$url: $what, $try times. Give the same command again later; what is here is kept."
            die "$url: the download broke off (curl error $code) after $(human "$(bytes_of "$file")")." \
                "Those are kept: give the same command again to go on."
        fi
        say "$what: going on"
        sleep "$try"
        try=$((try + 1))
    done
}

unpack() { # archive, name, note for the mark: all of it appears under its name, or nothing
    local root
    # what lies around a single folder is not kept: Task01_BrainTumour/imagesTr -> msd-brain/imagesTr
    UNPACKING="$OUT/.$2.unpacking"
    rm -rf "$UNPACKING"
    trap 'rm -rf "$UNPACKING"' EXIT
    mkdir "$UNPACKING"
    tar -xf "$1" -C "$UNPACKING" || die "$1: cannot be unpacked (is the disk full?); it is kept, give the same command again"
    root=$UNPACKING
    if [ "$(count "$root" -mindepth 1 -maxdepth 1)" -eq 1 ] && [ "$(count "$root" -mindepth 1 -maxdepth 1 -type d)" -eq 1 ]; then
        root=$(find "$root" -mindepth 1 -maxdepth 1 -type d ! -name '._*')
    fi
    [ "$(count "$root" -name '*.nii.gz')" -gt 0 ] || die "$1: holds no NIfTI file (.nii.gz); is it the right archive?"
    rm -rf "$root/.complete" # one that lies in the archive may be a link to elsewhere
    say "$3" > "$root/.complete"
    mv "$root" "$OUT/$2"
    rm -f "$1"
}

get() { # name, address, md5
    local name=$1 url=$2 md5=${MADAD_MD5:-$3} file size have found
    file="$OUT/${url##*/}.part"
    if [ -L "$file" ] || { [ -e "$file" ] && [ ! -f "$file" ]; }; then
        die "$file: is a link or no file, and not from this script; move it away or choose another --out DIR"
    fi
    if [ -f "$OUT/$name/.complete" ]; then
        say "$OUT/$name: is there already ($(count "$OUT/$name" -name '*.nii.gz') NIfTI files)"
        return
    fi
    if [ -e "$OUT/$name" ] || [ -L "$OUT/$name" ]; then
        die "$OUT/$name: is there, but not from this script; move it away or choose another --out DIR"
    fi
    command -v curl > /dev/null || die "curl is needed and not installed"

    size=$(content_length "$url")
    have=$(bytes_of "$file")
    if [ -n "$size" ]; then
        if [ "$have" -gt "$size" ]; then rm -f "$file"; have=0; fi # the rest of something else
        say "$url: $(human "$size")$([ "$have" -eq 0 ] || echo ", $(human "$have") of it are here")"
        check_space $((size - have + size * UNPACKED_PERCENT / 100))
    else
        say "$url: the server does not tell the size; free space is not checked"
    fi
    download "$url" "$file" "$size"
    if [ ! -s "$file" ]; then
        rm -f "$file"
        die "$url: the server sent an empty file. Has it moved? MADAD_IXI_URL or MADAD_MSD_URL name another server."
    fi

    say "checking"
    found=$(md5_of "$file")
    if [ "$found" != "$md5" ]; then
        mv -f "$file" "${file%.part}.corrupt"
        die "$url: the file is damaged: its md5 sum is $found, expected $md5." \
            "It was moved to ${file%.part}.corrupt (delete it); give the same command again to download it anew."
    fi
    say "unpacking"
    unpack "$file" "$name" "$url $md5"
    say "$OUT/$name: $(count "$OUT/$name" -name '*.nii.gz') NIfTI files"
}

problem() { # the first ten are shown
    PROBLEMS=$((PROBLEMS + 1))
    if [ "$PROBLEMS" -le 10 ]; then say "  $1"; fi
}

verdict() { # folder, text when there was no problem
    if [ "$PROBLEMS" -eq 0 ]; then say "complete: $2"; else die "$1: INCOMPLETE, problems: $PROBLEMS (the first are above); unpack it again"; fi
}

check_atlas() {
    local dir="$OUT/atlas" masks mask
    cat << TEXT
ATLAS 2.0 (Anatomical Tracings of Lesions After Stroke), 655 patients with lesion masks:
  1. Read the terms at https://fcon_1000.projects.nitrc.org/indi/retro/atlas.html, fill in the form there that asks for
     access, and wait for the e-mail with the password. Each person needs their own.
  2. Download the encrypted archive:
       curl -L -C - -O https://fcon_1000.projects.nitrc.org/indi/retro/ATLAS/releases/R2.0/ATLAS_R2.0_encrypted.tar.gz
     (if it has moved, the page of step 1 says where to)
  3. Decrypt it; openssl asks for the password:
       openssl aes-256-cbc -md sha256 -d -a -in ATLAS_R2.0_encrypted.tar.gz -out ATLAS_R2.0.tar.gz
  4. Unpack it:
       mkdir -p "$dir" && tar -xzf ATLAS_R2.0.tar.gz -C "$dir"
  5. Give this command again: it checks the folder.

TEXT
    [ -d "$dir" ] || die "$dir: not there yet; follow the steps above"
    masks=$(count "$dir" -name '*_label-L_desc-T1lesion_mask.nii.gz')
    say "$dir: $masks lesion masks (expected 655), $(count "$dir" -name '*_T1w.nii.gz') T1 scans (655 with a mask, 300 more without)"
    [ "$masks" -eq 655 ] || problem "$masks of 655 lesion masks"
    while IFS= read -r mask; do
        if [ ! -s "$mask" ] || [ ! -s "${mask%_label-L_desc-T1lesion_mask.nii.gz}_T1w.nii.gz" ]; then
            problem "scan or mask missing or empty: $mask"
        fi
    done < <(find "$dir" -name '*_label-L_desc-T1lesion_mask.nii.gz' ! -name '._*' | sort)
    verdict "$dir" "655 patients. Next: madad prepare $dir --out data/prepared-atlas --contrast t1"
}

check_brats() {
    local dir="$OUT/brats" patients patient part
    cat << TEXT
BraTS 2021, 1251 patients of the training set:
  1. Make an account at https://www.synapse.org and have it certified if Synapse asks for it.
  2. Join the challenge at https://www.synapse.org/Synapse:syn25829067 and accept the terms of use of the data.
  3. Download RSNA_ASNR_MICCAI_BraTS2021_TrainingData from https://www.synapse.org/Synapse:syn27046444
  4. Unpack it (unzip if it is a .zip, tar -xf if it is a .tar) so that there is
       $dir/BraTS2021_00000/BraTS2021_00000_flair.nii.gz    (a folder in between does no harm)
  5. Give this command again: it checks the folder.

TEXT
    [ -d "$dir" ] || die "$dir: not there yet; follow the steps above"
    patients=$(count "$dir" -type d -name 'BraTS2021_[0-9]*')
    say "$dir: $patients patients (expected 1251)"
    [ "$patients" -eq 1251 ] || problem "$patients of 1251 patients"
    while IFS= read -r patient; do
        for part in t1 t1ce t2 flair seg; do
            [ -s "$patient/${patient##*/}_$part.nii.gz" ] || problem "missing or empty: $patient/${patient##*/}_$part.nii.gz"
        done
    done < <(find "$dir" -type d -name 'BraTS2021_[0-9]*' | sort)
    verdict "$dir" "1251 patients. Next: madad prepare $dir --out data/prepared-brats --contrast flair --patients-in-train"
}

OUT=data
SET=
PROBLEMS=0
while [ $# -gt 0 ]; do
    case $1 in
        -h | --help) usage; exit 0 ;;
        --out) [ $# -ge 2 ] || refuse "--out wants a folder"; OUT=$2; shift ;;
        --out=*) OUT=${1#--out=} ;;
        -*) refuse "unknown option $1" ;;
        *) [ -z "$SET" ] || refuse "one data set at a time, not $SET and $1"; SET=$1 ;;
    esac
    shift
done
case $OUT in
    '') refuse "--out wants a folder" ;;
    -*) OUT=./$OUT ;;
esac
case $SET in
    '') refuse "which data set?" ;;
    ixi-t1 | ixi-t2 | msd-brain) mkdir -p "$OUT" ;;
esac
case $SET in
    # md5 sums as published in torchio (IXI) and MONAI (Decathlon)
    ixi-t1) get ixi-t1 "${IXI_URL%/}/IXI-T1.tar" 34901a0593b41dd19c1a1f746eac2d58 ;;
    ixi-t2) get ixi-t2 "${IXI_URL%/}/IXI-T2.tar" e3140d78730ecdd32ba92da48c0a9aaa ;;
    msd-brain) get msd-brain "${MSD_URL%/}/Task01_BrainTumour.tar" 240a19d752f0d9e9101544901065d872 ;;
    atlas) check_atlas ;;
    brats) check_brats ;;
    *) refuse "unknown data set $SET" ;;
esac
case $SET in
    ixi-t1) say "Next: madad prepare $OUT/ixi-t1 --out data/prepared-ixi --contrast t1" ;;
    ixi-t2) say "Next: madad prepare $OUT/ixi-t2 --out data/prepared-ixi-t2 --contrast t2" ;;
    msd-brain) say "Next: madad prepare $OUT/msd-brain --out data/prepared-msd --contrast flair --patients-in-train" ;;
esac
