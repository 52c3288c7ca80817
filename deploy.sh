#!/usr/bin/env bash
#
# deploy.sh: what one deployment does. Fetch the site, build it, publish what changed.
#
# It is yours to replace, in any language. boop runs one at a time, in a folder that stays
# from run to run ($BOOP_STATE/work), with stdin empty, and keeps all that it prints as the
# log. Exit 0 says that the site is live; anything else, that it is as it was. What it gets:
#
#   BOOP_REPO             URL or path of the repository: all that is needed by hand
#   BOOP_BRANCH           the branch; empty: the repository's default one
#   BOOP_COMMIT           the commit to deploy, if BOOP_EXACT=1 (a rollback); otherwise it is
#                         only news, and the branch's tip is deployed
#   BOOP_STATE            the state folder
#   BOOP_NUMBER BOOP_TRIGGER BOOP_MESSAGE BOOP_AUTHOR       not used here
#   DEPLOY_TO             s3://bucket[/prefix], or a folder; default $BOOP_STATE/public.
#                         What is there and not in the site is deleted
#   DEPLOY_FULL=1         trust nothing remembered: clone, build and upload everything
#   DEPLOY_FORCE=1        publish even an empty site, or one that lost most of its files
#   DEPLOY_CACHE_CONTROL  S3: the pages' Cache-Control; default "public, max-age=60"
#   DEPLOY_CLOUDFRONT     the distribution to invalidate when something changed
#
# The order is the promise: new assets, then pages, deletions last. A visitor never gets a
# page before its stylesheet, and a step that fails leaves the next ones undone.
#
# Without a Hugo configuration, the repository is the site, as it is: its regular files,
# without .git and .gitmodules. Hugo follows symbolic links, within the repository only.
# shellcheck disable=SC2312
set -euo pipefail
umask 022                       # the web server reads the result; work itself is 0700
export LC_ALL=C.UTF-8           # sort and comm agree, and names are UTF-8 to every program
export GIT_TERMINAL_PROMPT=0 GIT_SSH_COMMAND=${GIT_SSH_COMMAND:-ssh -o BatchMode=yes}
export AWS_PAGER=''
# Run from a git hook, git would work in the hook's repository instead of ours.
unset GIT_DIR GIT_WORK_TREE GIT_INDEX_FILE GIT_PREFIX GIT_COMMON_DIR GIT_NAMESPACE CDPATH
unset GIT_OBJECT_DIRECTORY GIT_ALTERNATE_OBJECT_DIRECTORIES GIT_QUARANTINE_PATH

die() { printf 'deploy: %s\n' "$*" >&2; exit 1; }
report() {                      # report fetch "main at 1234abc": a line with the step's time
  local now=${EPOCHREALTIME/./} tenths
  tenths=$(((now - since + 50000) / 100000)) since=$now
  printf '%-8s%4d.%d s  %s\n' "$1" $((tenths / 10)) $((tenths % 10)) "$2"
}
refuse() {                      # what looks like an accident needs an owner's word
  if [[ ${DEPLOY_FORCE:-} != 1 ]]; then die "$1 Nothing is published (DEPLOY_FORCE=1: do it)"; fi
}
began=${EPOCHREALTIME/./} since=${EPOCHREALTIME/./}

# --- Where -----------------------------------------------------------------------------
repo=${BOOP_REPO:?the URL or path of the repository to deploy} branch=${BOOP_BRANCH:-}
state=$(realpath -m -- "${BOOP_STATE:-${XDG_STATE_HOME:-$HOME/.local/state}/boop}")
work=$state/work target=${DEPLOY_TO:-$state/public} bucket=''
if [[ -d $repo ]]; then repo=$(realpath -- "$repo"); fi
case $target in
  s3://?*)
    bucket=${target#s3://} bucket=${bucket%%/*} target=${target%/}
    prefix=${target#"s3://$bucket"} prefix=${prefix#/} prefix=${prefix:+$prefix/} ;;
  *://*) die "DEPLOY_TO=$target: neither s3://bucket nor a folder" ;;
  *)
    target=$(realpath -m -- "$target")
    for precious in "${HOME:-/}" "$work" "$repo"; do
      if [[ $precious/ == "${target%/}"/* ]]; then
        die "DEPLOY_TO=$target would delete $precious"
      fi
    done
    if [[ $target/ == "$work"/* || -e $target/.git ]]; then
      die "DEPLOY_TO=$target is boop's own work folder, or somebody's git checkout"
    fi ;;
esac

mkdir -p -- "$work"
cd -- "$work"
chmod 700 .
# Whatever a killed run left behind (an aws that still uploads) holds this lock as well.
exec 9>>lock
flock -n 9 || { echo 'waiting for an earlier run to end'; flock 9; report wait 'it ended'; }
export GIT_CEILING_DIRECTORIES=$work    # a damaged src must not lead git to a repository above

aws() {                         # older versions do not know AWS_ENDPOINT_URL
  local url=${AWS_ENDPOINT_URL:-}
  if [[ $1 != cloudfront ]]; then url=${AWS_ENDPOINT_URL_S3:-$url}; fi
  command aws ${url:+--endpoint-url "$url"} "$@"
}

# --- What is published now: "size<tab>name" lines ----------------------------------------
list() {
  if [[ ! $bucket ]]; then
    rm -rf -- "$target/.boop.new"
    mkdir -p -- "$target"
    find "$target" ! -type d -printf '%s\t%P\n'
    return
  fi
  aws s3api list-objects-v2 --bucket "$bucket" --prefix "$prefix" \
    --query 'Contents[].[Size,Key]' --output text |
    while IFS=$'\t' read -r size key; do        # not "None", nor a console's "folder/"
      if [[ $key == "$prefix"*[!/] ]]; then printf '%s\t%s\n' "$size" "${key#"$prefix"}"; fi
    done
}
# aws takes half a second to start: meanwhile, git and hugo work.
list >there & lister=$!
rm -rf site stage & sweeper=$!
trap 'kill "$lister" 2>/dev/null || :' EXIT

# --- Fetch -------------------------------------------------------------------------------
upload_pack=() exact=''
if [[ -d ${repo#file://} ]]; then  # named by our owner, so it may belong to another user
  upload_pack=(--upload-pack 'git -c safe.directory=* upload-pack')
fi
if [[ ${BOOP_EXACT:-} == 1 && ${BOOP_COMMIT:-} ]]; then
  exact=$BOOP_COMMIT
  [[ $exact =~ ^[0-9a-f]{7,64}$ ]] || die 'BOOP_COMMIT is not the name of a commit'
fi
git_in() { command git -c gc.autoDetach=false -C "$@"; }
fetch() {                       # fetch FOLDER REF
  git_in "$1" fetch --quiet --force --no-tags --update-shallow --no-recurse-submodules \
    "${upload_pack[@]}" origin "$2"
}
update() {                      # update FOLDER; by &&, for its callers disable set -e
  fetch "$1" "+${branch:+refs/heads/}${branch:-HEAD}:refs/boop/tip" &&
    { [[ ! $exact ]] || git_in "$1" cat-file -e "$exact^{commit}" 2>/dev/null ||
      fetch "$1" "$exact"; } &&         # it was pushed over
    git_in "$1" reset --quiet --hard "${exact:-refs/boop/tip}" &&
    git_in "$1" clean --quiet -ffdx -e /resources/_gen &&       # hugo's pictures stay
    { [[ ! -e $1/.gitmodules ]] || {
      git_in "$1" submodule --quiet sync --recursive &&
        git_in "$1" submodule --quiet update --init --recursive --force; }; }
}
clone() {                       # with its history, which enableGitInfo wants
  rm -rf src.new &&
    git clone --quiet --no-checkout --no-local --no-tags --single-branch \
      ${branch:+--branch "$branch"} "${upload_pack[@]}" -- "$repo" src.new &&
    update src.new && rm -rf src && mv src.new src
}
if [[ ${DEPLOY_FULL:-} == 1 ]]; then rm -rf published; fi
if [[ ${DEPLOY_FULL:-} == 1 || -e building ]]; then
  rm -rf src cache              # hugo was killed: it may have left half a picture
fi
if [[ -e src/.git && $(git_in src config remote.origin.url || :) == "$repo" ]] && update src
then :; else
  if [[ -e src ]]; then echo 'the last clone is of no use here: cloning afresh'; fi
  clone || die "cannot fetch ${exact:-${branch:-the default branch}} from the repository"
fi
subject=$(git_in src log -1 --format='%h: %s (%an)')
report fetch "${branch:-HEAD} at ${subject//[^[:print:]]/?}"

# --- Build -------------------------------------------------------------------------------
wait "$sweeper"
has() { local name; for name; do if [[ -e src/$name ]]; then return; fi; done; return 1; }
hugo='' site=src
if has hugo.{toml,yaml,yml,json} config/_default || {
  has config.{toml,yaml,yml,json} && has content layouts themes; }      # else anyone's
then hugo=1 site=site; fi
find src -name .git -prune -o ! -type f ! -type d -print0 | while IFS= read -rd '' odd; do
  case ${hugo:+$(realpath -e -- "$odd" 2>/dev/null)}/ in
    */.git/*) ;;
    "$work/src"/?*) continue ;;
  esac
  printf 'left out: %q is no regular file%s\n' "${odd#src/}" "${hugo:+ of the repository}"
  rm -- "$odd"
done
if [[ $hugo ]]; then
  command -v hugo >/dev/null ||
    die 'this site needs hugo: apt install hugo, or https://gohugo.io/installation/'
  : >building
  hugo --source src --destination "$work/site" --cacheDir "${HUGO_CACHEDIR:-$work/cache}" 2>&1 |
    { grep -vE '^$|^(Start building|Building sites|hugo v|Total in)|^ +.*\||^-+\+' || :; } ||
    status=$?
  if ((${status:-0} < 128)); then rm building; fi
  if [[ ${status:-} ]]; then die "hugo failed: exit status $status"; fi
  pages=$(find site -name '*.html' -printf . | wc -c)
  if [[ $pages == 0 ]]; then refuse 'hugo made no page: is a theme or the content missing?'; fi
fi
if [[ $(find "$site" -name .git -prune -o -name $'*\n*' -print) ]]; then
  die 'a file name holds a line break'
fi
find "$site" -name .git -prune -o -type f ! -path src/.gitmodules -printf '%s\t%P\n' | sort >here
files=$(wc -l <here)
if [[ $files == 0 ]]; then refuse 'the site is empty.'; fi
report build "$files files${pages:+, $pages pages}"

# --- Compare -----------------------------------------------------------------------------
# hugo writes every file anew, so contents decide: what differs from the digest of what was
# last published under the same headers, or is not there in its size.
page_cache=${DEPLOY_CACHE_CONTROL:-public, max-age=60}
about=$(md5sum <<<"$target ${AWS_ENDPOINT_URL:-} $page_cache" | cut -c-32)
(cd "$site" && cut -f2- "$work/here" | xargs -d '\n' -r md5sum -z --) |
  tr '\0' '\n' | sed "s/^/$about /" | sort >manifest
touch published
wait "$lister" || die "cannot see what is in $target"
sort -o there there
{ comm -13 published manifest | cut -c68-; comm -23 here there | cut -f2-; } | sort -u >changed
comm -13 <(cut -f2- here | sort) <(cut -f2- there | sort) >gone
uploaded=$(wc -l <changed) deleted=$(wc -l <gone) before=$(wc -l <there)
report compare "$uploaded to upload, $deleted to delete, $((files - uploaded)) unchanged"
if ((before > 20 && deleted > before / 2)); then
  refuse "this would delete $deleted of the $before files in $target."
fi

# --- Publish -----------------------------------------------------------------------------
type_of() {                     # for what aws guesses by the machine's mime.types, or not at all
  case $1 in
    avif | webp) type=image/$1 ;;       woff | woff2 | ttf | otf) type=font/$1 ;;
    mjs) type=text/javascript ;;        webmanifest) type=application/manifest+json ;;
    wasm) type=application/wasm ;;      map) type=application/json ;;
    txt) type='text/plain; charset=utf-8' ;;    md) type='text/markdown; charset=utf-8' ;;
    *) type='' ;;
  esac
}
# One aws process for each list: stage/1.list, 2.list, 3.list, and stage/2.woff2.list ...
cache=('' 'public, max-age=31536000, immutable' 'public, max-age=600' "$page_cache")
sort_out() {
  local fingerprint='\.[0-9a-f]{32,128}\.|_hu_?[0-9a-f]{16}' name ext class
  while IFS= read -r name; do
    ext=${name##*.} ext=${ext,,} class=2
    case $ext in html | htm | xhtml | xml | json | txt | md | webmanifest) class=3 ;; *) ;; esac
    if [[ ${name##*/} =~ $fingerprint ]]; then class=1; fi
    type_of "$ext"
    printf '%s\n' "$name" >>"stage/$class${type:+.$ext}.list"
  done
}
put() {                         # put FOLDER CACHE-CONTROL CONTENT-TYPE
  if [[ $bucket ]]; then
    aws s3 cp --recursive --only-show-errors "$1" "$target" \
      --cache-control "$2" ${3:+--content-type "$3"}
  else                          # cp links under another name, and renames: never half a file
    cp -r -- "$1" "$target/.boop.new"
    cp -rlf -- "$target/.boop.new/." "$target"
    rm -rf -- "$target/.boop.new"
  fi
}
delete_gone() {                 # an S3 request deletes up to 1000 names, and fails for some of them
  local batch failed
  if [[ $bucket ]]; then
    while IFS= read -r name; do printf '%s\n' "$prefix$name"; done <gone |
      sed 's/[\\"]/\\&/g; s/\t/\\t/g; s/.*/{"Key": "&"}/' | split -l 1000 - stage/gone.
    for batch in stage/gone.*; do
      printf '{"Quiet": true, "Objects": [%s]}' "$(paste -sd , "$batch")" >"$batch.json"
      failed=$(aws s3api delete-objects --bucket "$bucket" --delete "file://$batch.json" \
        --query 'Errors[].[Key,Message]' --output text)
      if [[ $failed && $failed != None ]]; then die "cannot delete $failed"; fi
    done
  else
    while IFS= read -r name; do         # unless a new folder has its name by now
      if [[ ! -d $target/$name ]]; then rm -f -- "$target/$name"; fi
    done <gone
    find "$target" -mindepth 1 -type d -empty -delete
  fi
}
make_way() {                    # where a folder stands in the way of a file, or the reverse
  local name
  while IFS= read -r name; do
    if [[ -d $site/$name || -d $target/$name ]]; then rm -rf -- "${target:?}/$name"; fi
  done < <(cat changed gone)
}

if [[ -s changed || -s gone || -e invalidate ]]; then
  # From here on, until the end, what is about to be replaced is not known to be there.
  comm -12 published manifest >published.new
  mv published.new published
  if [[ ${DEPLOY_CLOUDFRONT:-} ]]; then : >invalidate; fi
  mkdir stage
  sort_out <changed
  if [[ ! $bucket ]]; then make_way; fi
  for list in stage/*.list; do
    [[ -e $list ]] || break     # nothing but deletions
    batch=${list%.list} class=${list:6:1}
    mkdir "$batch"
    (cd "$site" && xargs -d '\n' cp -l --parents -t "../$batch" -- <"../$list")
    type_of "${batch##*.}"
    put "$batch" "${cache[class]}" "$type"
  done
  if [[ -s gone ]]; then delete_gone; fi
  report publish "$target"
  if [[ ${DEPLOY_CLOUDFRONT:-} ]]; then
    aws cloudfront create-invalidation --distribution-id "$DEPLOY_CLOUDFRONT" --paths '/*' >/dev/null
    report purge "CloudFront $DEPLOY_CLOUDFRONT"
  fi
fi
mv manifest published
rm -f invalidate
bytes=$(cd "$site" && tr '\n' '\0' <../changed | du -bc --files0-from=- | tail -n 1 | cut -f1)
rm -rf stage
since=$began
sum="$uploaded uploaded ($(numfmt --to=iec "$bytes")B), $deleted deleted"
report 'live' "${subject%%:*}: ${pages:+$pages pages, }$sum, $((files - uploaded)) unchanged"
