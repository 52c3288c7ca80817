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
#   BOOP_RESULT           a file for lines of name=value, which boop reads when it ends:
#                         commit, message, author, url, and the reason of a failure
#   DEPLOY_TO             s3://bucket[/prefix], or a folder; default $BOOP_STATE/public
#   DEPLOY_URL            the site's address, for boop's record; default: hugo's baseURL
#   DEPLOY_FULL=1         trust nothing remembered: clone, build and upload everything
#   DEPLOY_FORCE=1        publish even a site that is empty, lost its home page or most of
#                         its files, and delete what else is in DEPLOY_TO
#   DEPLOY_CACHE_CONTROL  S3: the pages' Cache-Control; default "public, max-age=60"
#   DEPLOY_CLOUDFRONT     the distribution to invalidate when something changed
#
# The order is the promise: new assets, then pages, deletions last. A visitor never gets a
# page before its stylesheet, and a step that fails leaves the next ones undone. Only what
# was published from here is ever deleted (work/manifests has a list for each target).
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

plain() { local text=${*//[[:cntrl:]]/ }; printf '%s\n' "${text:0:300}"; }
result() {                      # result NAME VALUE: for boop's record
  if [[ ${BOOP_RESULT:-} && $2 ]]; then plain "$1=$2" >>"$BOOP_RESULT"; fi
}
die() { plain "deploy: $*" >&2; result reason "$*"; exit 1; }
refuse() {                      # what looks like an accident needs an owner's word
  if [[ ${DEPLOY_FORCE:-} != 1 ]]; then die "$1: not published without DEPLOY_FORCE=1"; fi
}
try() {                         # try WHAT COMMAND...: its own first words say why it failed
  "${@:2}" 2>&1 | tee "said.$2" && return
  local status=$? said
  said=$(sed -E '/^(remote: *=*)?$|^(Start building|hugo v|Total in|WARN|INFO|hint|[Ww]arning)/d
    s/^.*(failed|templates): ("[^"]+:[0-9]+:[0-9]+": )/\2/
    s/^((remote|fatal|[Ee]rror|ERROR)( building site)?[ 0-9/:]* )+//
    q' "said.$2")
  said=${said//"$work/src/"/}
  die "$1: ${said:-exit status $status}"
}
report() {                      # report fetch "main at 1234abc": a line with the step's time
  local now=${EPOCHREALTIME/./}
  printf '%-8s%5.1f s  %s\n' "$1" "$((now - since))e-6" "$2"
  since=$now
}
began=${EPOCHREALTIME/./} since=${EPOCHREALTIME/./}

# --- Where -----------------------------------------------------------------------------
if [[ ! ${BOOP_REPO:-} ]]; then die 'BOOP_REPO is not set: which repository to deploy?'; fi
repo=$BOOP_REPO branch=${BOOP_BRANCH:-}
state=$(realpath -m -- "${BOOP_STATE:-${XDG_STATE_HOME:-$HOME/.local/state}/boop}")
work=$state/work target=${DEPLOY_TO:-$state/public} bucket=''
if [[ -d $repo ]]; then repo=$(realpath -- "$repo"); fi
if [[ $target/ == \~/* ]]; then target=$HOME${target:1}; fi     # no shell has seen it yet
case $target in
  s3://?*)
    bucket=${target#s3://} bucket=${bucket%%/*} target=${target%/}
    prefix=${target#"s3://$bucket"} prefix=${prefix#/} prefix=${prefix:+$prefix/} ;;
  *://*) die "DEPLOY_TO=$target: neither s3://bucket nor a folder" ;;
  *)
    target=$(realpath -m -- "$target")
    for precious in "${HOME:-/}" "$work" "$repo"; do
      if [[ $precious/ == "${target%/}"/* ]]; then die "DEPLOY_TO=$target holds $precious"; fi
    done
    if [[ $target/ == "$work"/* || -e $target/.git ]]; then
      die "DEPLOY_TO=$target is boop's own work folder, or somebody's git checkout"
    fi ;;
esac

mkdir -p -- "$work/manifests"
cd -- "$work"
chmod 700 .
# Whatever a killed run left behind (an aws that still uploads) holds this lock as well.
exec 9>>lock
flock -n 9 || { echo 'waiting for an earlier run to end'; flock 9; report wait 'it ended'; }
export GIT_CEILING_DIRECTORIES=$work    # a damaged src must not lead git to a repository above
rm -rf site stage said.*

aws() {                         # older versions do not know AWS_ENDPOINT_URL
  local url=${AWS_ENDPOINT_URL:-}
  if [[ $1 != cloudfront ]]; then url=${AWS_ENDPOINT_URL_S3:-$url}; fi
  command aws ${url:+--endpoint-url "$url"} "$@"
}
list() {                        # what is published now: "size<tab>name" lines
  if [[ $bucket ]]; then        # but not "None", nor a console's "folder/"
    aws s3api list-objects-v2 --bucket "$bucket" --prefix "$prefix" \
      --query 'Contents[].[Size,Key]' --output text |
      sed -nE "s/^([0-9]+\t).{${#prefix}}(.*[^/])\$/\1\2/p" >there
  else
    rm -rf -- "$target/.boop.new" && mkdir -p -- "$target" &&
      find "$target" ! -type d -printf '%s\t%P\n' >there
  fi
}
# aws takes half a second to start: meanwhile, git and hugo work.
try "cannot list $target" list & lister=$!
trap 'kill "$lister" 2>/dev/null || :' EXIT

# --- Fetch -------------------------------------------------------------------------------
upload_pack=() lfs=() exact=''
if [[ -d ${repo#file://} ]]; then  # named by our owner, so it may belong to another user
  upload_pack=(--upload-pack 'git -c safe.directory=* upload-pack')
fi
if command -v git-lfs >/dev/null; then  # what "git lfs install" configures
  lfs=(-c filter.lfs.process='git-lfs filter-process' -c filter.lfs.required=true)
fi
if [[ ${BOOP_EXACT:-} == 1 && ${BOOP_COMMIT:-} ]]; then
  exact=$BOOP_COMMIT
  [[ $exact =~ ^[0-9a-f]{7,64}$ ]] || die 'BOOP_COMMIT is not the name of a commit'
fi
git_in() { command git -c gc.autoDetach=false "${lfs[@]}" -C "$@"; }
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
if [[ ${DEPLOY_FULL:-} == 1 ]]; then rm -rf src; fi
if [[ ${DEPLOY_FULL:-} == 1 || -e building ]]; then
  rm -rf cache src/resources/_gen       # hugo was killed: it may have left half a picture
fi
if [[ -e src/.git && $(git_in src config remote.origin.url || :) == "$repo" ]] && update src
then :; else
  if [[ -e src ]]; then echo 'the last clone is of no use here: cloning afresh'; fi
  try "cannot fetch ${exact:-${branch:-the default branch}}" clone
fi
mapfile -t tip < <(git_in src log -1 --format=%h%n%H%n%s%n%an)
result commit "${tip[1]}"
result message "${tip[2]}"
result author "${tip[3]}"
subject="${tip[0]}: ${tip[2]} (${tip[3]})"
report fetch "${branch:-HEAD} at ${subject//[^[:print:]]/?}"
if [[ ! ${lfs[*]} ]] && grep -rqs --include=.gitattributes filter=lfs src; then
  rm -rf src                    # its files are pointers: to be checked out anew
  die 'this repository uses Git LFS: apt install git-lfs'
fi

# --- Build -------------------------------------------------------------------------------
has() { local name; for name; do if [[ -e src/$name ]]; then return; fi; done; return 1; }
hugo='' site=src
if has hugo.{toml,yaml,yml,json} config/_default || {
  has config.{toml,yaml,yml,json} && has content layouts themes; }      # else it is anyone's
then hugo=1 site=site; fi
find src -name .git -prune -o ! -type f ! -type d -print0 | while IFS= read -rd '' odd; do
  real=${hugo:+$(realpath -e -- "$odd" 2>/dev/null || :)}
  if [[ $real == "$work/src/"* && ${real#"$work"}/ != */.git/* ]]; then continue; fi
  printf 'left out: %q is no regular file%s\n' "${odd#src/}" "${hugo:+ of the repository}"
  rm -- "$odd"
done
if [[ $hugo ]]; then
  command -v hugo >/dev/null ||
    die 'this site needs hugo: apt install hugo, or https://gohugo.io/installation/'
  : >building
  try 'hugo failed' hugo --source src --destination "$work/site" \
    --cacheDir "${HUGO_CACHEDIR:-$work/cache}"
  rm building
  pages=$({ grep -rLi --include='*.html' 'http-equiv="\?refresh' site || :; } | wc -l)
  if [[ ! -e site/index.html || $pages == 0 ]]; then      # an alias is no page
    refuse 'hugo made no home page (is the theme or a template missing?)'
  fi
fi
site_files() { find "$site" -name .git -prune -o -type f ! -path src/.gitmodules "$@"; }
# A tab is harmless; what else is no text would break a list of names, or S3's own.
IFS= read -rd '' bad < <(site_files -printf '%P\0' | grep -zavxE $'([^[:cntrl:]]|\t)+') || :
if [[ $bad ]]; then
  die "the name of the file $(printf %q "$bad") is not UTF-8, or holds a line break"
fi
site_files -printf '%s\t%P\n' | sort >here
files=$(wc -l <here)
if [[ $files == 0 ]]; then refuse 'the site is empty'; fi
report build "$files files${pages:+, $pages pages}"

# --- Compare -----------------------------------------------------------------------------
# A target's manifest has "digest<tab>name" lines for all that was put there from here. hugo
# writes every file anew, so contents decide: what has not the digest that was published, or
# is not there in its size. While publishing, the digest of a file that is about to change or
# go is "-", and of one that was never there "+": not believed, but ours.
page_cache=${DEPLOY_CACHE_CONTROL:-public, max-age=60}
manifest=manifests/$(md5sum <<<"$target ${AWS_ENDPOINT_URL:-}" | cut -c-32)
headers=$(md5sum <<<"$page_cache" | cut -c-8)
doubt() { sed '/^+/!s/^[^\t]*/-/'; }
cut -f2- here | (cd "$site" && xargs -d '\n' -r md5sum -z --) | tr '\0' '\n' |
  sed -E "s/^(.{32})  /$headers\1\t/" | sort >manifest
touch "$manifest"
if [[ ${DEPLOY_FULL:-} == 1 ]]; then doubt <"$manifest" | sort >was; else cp "$manifest" was; fi
wait "$lister" || exit 1
sort -o there there
cut -f2- here | sort >names
cut -f2- was | sort >ours
sed '/^+/d' was | cut -f2- | sort | comm -23 - names >lost
{ comm -13 was manifest; comm -23 here there; } | cut -f2- | sort -u >changed
cut -f2- there | sort >standing
comm -23 ours names | comm -12 - standing >gone
sort -u ours names | comm -13 - standing >others
if [[ ${DEPLOY_FORCE:-} == 1 ]]; then
  sort -o gone gone others
elif [[ -s others ]]; then
  echo "$(wc -l <others) files here are not boop's: left alone; DEPLOY_FORCE=1 deletes them"
fi
# The default folder is boop's own: another repository's site takes the place of the last.
if [[ ! ${DEPLOY_TO:-} && -e manifests/repo && $(<manifests/repo) != "$repo" ]]; then
  : >lost
fi
uploaded=$(wc -l <changed) deleted=$(wc -l <gone) lost=$(wc -l <lost)
published=$(sed '/^+/d' was | wc -l)
report compare "$uploaded to upload, $deleted to delete, $((files - uploaded)) unchanged"
if ((2 * lost > published)); then refuse "the site lost $lost of its $published files"; fi
if grep -qxF index.html lost; then refuse 'the site lost its home page, index.html'; fi

# --- Publish -----------------------------------------------------------------------------
# A list of names for each Cache-Control (1, 2 or 3) and Content-Type, as each needs an aws.
cache=('' 'public, max-age=31536000, immutable' 'public, max-age=600' "$page_cache")
sort_out() {                    # "stage/2:font:woff2.list"; no type: aws knows it everywhere
  local fingerprint='\.[0-9a-f]{32,128}\.|_hu_?[0-9a-f]{16}' name ext class type
  while IFS= read -r name; do
    ext=${name##*.} ext=${ext,,} class=2 type=''
    case $ext in
      html | htm | xhtml | xml | json) class=3 ;;
      txt) class=3 type='text/plain; charset=utf-8' ;;
      md) class=3 type='text/markdown; charset=utf-8' ;;
      webmanifest) class=3 type=application/manifest+json ;;
      avif | webp) type=image/$ext ;;
      woff | woff2 | ttf | otf) type=font/$ext ;;
      mjs) type=text/javascript ;;
      wasm) type=application/wasm ;;
      map) type=application/json ;;
      *) ;;
    esac
    if [[ ${name##*/} =~ $fingerprint ]]; then class=1; fi
    printf '%s\n' "$name" >>"stage/$class:${type/\//:}.list"
  done
}
put() {                         # put FOLDER CACHE-CONTROL CONTENT-TYPE
  if [[ $bucket ]]; then
    aws s3 cp --recursive --only-show-errors "$1" "$target" \
      --cache-control "$2" ${3:+--content-type "$3"}
  else                          # cp links under another name, and renames: never half a file
    cp -r -- "$1" "$target/.boop.new" && cp -rlf -- "$target/.boop.new/." "$target" &&
      rm -rf -- "$target/.boop.new"
  fi
}
delete_objects() {              # 1000 names a request; a 200 may hold errors
  local batch failed
  while IFS= read -r name; do printf '%s\n' "$prefix$name"; done <gone |
    sed 's/[\\"]/\\&/g; s/\t/\\t/g; s/.*/{"Key": "&"}/' | split -l 1000 - stage/gone.
  for batch in stage/gone.*; do
    printf '{"Quiet": true, "Objects": [%s]}' "$(paste -sd , "$batch")" >"$batch.json"
    failed=$(aws s3api delete-objects --bucket "$bucket" --delete "file://$batch.json" \
      --query 'Errors[].[Code,Key]' --output text) || return
    if [[ $failed != None ]]; then printf '%s\n' "$failed"; return 1; fi
  done
}
delete_files() {                # and the folders that they leave empty
  (cd "$target" && xargs -d '\n' -r rm -f -- && sed -n 's|/[^/]*$||p' "$work/gone" |
    { xargs -d '\n' -r rmdir -p --ignore-fail-on-non-empty -- 2>/dev/null || :; }) <gone
}
swapped() {                     # has a file taken the place of a folder, or the reverse?
  local name
  while IFS= read -r name; do
    if [[ -d $site/$name || -d $target/$name ]]; then return; fi
  done < <(cat changed gone)
  return 1
}
purge() {
  aws cloudfront create-invalidation --distribution-id "$DEPLOY_CLOUDFRONT" \
    --paths '/*' >/dev/null
}
delete() { if [[ $bucket ]]; then delete_objects; else delete_files; fi; }

if [[ -s changed || -s gone ]] || ! cmp -s "$manifest" manifest; then
  { comm -12 was manifest
    comm -23 was manifest | doubt
    comm -23 names ours | sed 's/^/+\t/'; } | sort >manifest.new
  mv manifest.new "$manifest"
  mkdir stage
  sort_out <changed
  if [[ ! $bucket ]] && swapped; then try "cannot delete in $target" delete && : >gone; fi
  for list in stage/*.list; do
    [[ -e $list ]] || break     # nothing but deletions
    batch=${list%.list} class=${list:6:1}
    type=${batch:8} type=${type/:/\/}
    mkdir "$batch"
    (cd "$site" && xargs -d '\n' cp -l --parents -t "../$batch" -- <"../$list")
    try "cannot publish to $target" put "$batch" "${cache[class]}" "$type"
  done
  if [[ -s gone ]]; then try "cannot delete in $target" delete; fi
  report publish "$target"
  if [[ ${DEPLOY_CLOUDFRONT:-} ]]; then
    try "cannot invalidate CloudFront's $DEPLOY_CLOUDFRONT" purge
    report purge "CloudFront $DEPLOY_CLOUDFRONT"
  fi
fi
mv manifest "$manifest"
if [[ ! ${DEPLOY_TO:-} ]]; then printf '%s\n' "$repo" >manifests/repo; fi
if [[ $hugo && ${BOOP_RESULT:-} && ! ${DEPLOY_URL:-} ]]; then  # example.org: a placeholder
  DEPLOY_URL=$(hugo config --source src 2>/dev/null | sed -nE "/example\.(org|com)/d
    s#^baseurl *= *[\"'](https?://[^\"']+)[\"']#\1#ip") || :
fi
result url "${DEPLOY_URL:-}"
rm -rf stage
since=$began
sum="$uploaded uploaded, $deleted deleted, $((files - uploaded)) unchanged"
report 'live' "${tip[0]}: ${pages:+$pages pages, }$sum"
