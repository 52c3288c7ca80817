#!/usr/bin/env bash
#
# deploy.sh: what one deployment does. Fetch the site, build it, publish what changed.
#
# It is yours to replace, in any language. boop runs one at a time, in a folder that
# stays from run to run ($BOOP_STATE/work), with stdin empty, and keeps all that it
# prints as the log. Exit 0: the site is live; anything else: the deployment failed.
#
#   BOOP_REPO             URL or path of the repository: all that is needed by hand
#   BOOP_BRANCH           the branch; empty: the repository's default one
#   BOOP_COMMIT           with BOOP_EXACT=1: the commit to deploy, not the branch's tip
#   BOOP_STATE            the state folder
#   BOOP_RESULT           a file for lines of name=value, which boop reads when it ends:
#                         commit, message, author, url, and the reason of a failure
#   DEPLOY_TO             s3://bucket[/prefix], or a folder; default $BOOP_STATE/public
#   DEPLOY_URL            the site's address, for boop's record; default: hugo's baseURL
#   DEPLOY_FULL=1         trust nothing remembered: clone, build and upload everything
#   DEPLOY_FORCE=1        publish even a site that lost its home page or most of its
#                         files, and delete what else is in DEPLOY_TO
#   DEPLOY_CACHE_CONTROL  S3: the pages' Cache-Control; default "public, max-age=60"
#   DEPLOY_CLOUDFRONT     the distribution to invalidate when something changed
#
# The order is the promise: new assets, then the pages that need them, deletions last.
# Only what was published from here is ever deleted.
set -euo pipefail
shopt -s nullglob
umask 022                       # the web server reads the result; work itself is 0700
export LC_ALL=C.UTF-8           # names are UTF-8 to every program
unset GIT_DIR GIT_WORK_TREE GIT_INDEX_FILE GIT_PREFIX CDPATH    # of a git hook

die() { echo "deploy: $1" >&2; echo "reason=$1" >>"$result"; exit 1; }
try() {                         # try WHAT COMMAND...: its own words say why it failed
  "${@:2}" 2>&1 | tee "said.$2" && return
  local why="exit status $?" error='error|fatal|fail|denied|unable|not '
  why=$(grep -aiEm 1 "^(ssh: |connection |([^w*].*)?($error))" "said.$2" ||
    grep -am 1 . "said.$2" || echo "$why")      # but no warning's
  die "$1: ${why//"$work/src/"/}"
}
report() {                      # report fetch "main at 1234abc": with the step's time
  local what=${2//[[:cntrl:]]/ }
  printf '%-8s%5.1f s  %s\n' "$1" "$((${EPOCHREALTIME/./} - since))e-6" "$what"
  since=${EPOCHREALTIME/./}
}
began=${EPOCHREALTIME/./} since=$began result=${BOOP_RESULT:-/dev/null}

# --- Where ----------------------------------------------------------------------------
repo=${BOOP_REPO:?which repository to deploy?} as_owner=()
if [[ -d ${repo#file://} ]]; then       # whose owner may be another user than ours
  repo=$(realpath -- "${repo#file://}")
  as_owner=(--upload-pack 'git -c safe.directory=* upload-pack')
fi
state=${BOOP_STATE:-${XDG_STATE_HOME:-~/.local/state}/boop}
work=$(realpath -m -- "$state")/work target=${DEPLOY_TO:-$state/public}
target=${target/#\~\//~/}               # no shell has seen it yet
[[ $target != \~ ]] || target=~

pick() {                        # pick NAMES [-l]: copies or links, in a new "stage"
  rm -rf -- "$stage" && mkdir -- "$stage" &&
    (cd "$site" && xargs -d '\n' cp "${@:2}" --parents -t "$stage" -- <"$work/$1")
}
aws() {                         # older versions do not know these variables
  local url=${AWS_ENDPOINT_URL_S3:-${AWS_ENDPOINT_URL:-}}
  command aws ${url:+--endpoint-url "$url"} "$@"
}
# A target, be it a bucket or a folder, can do three things:
#   list     "size<tab>name" lines of all that is there, to the file "there"
#   put NAMES CACHE-CONTROL [CONTENT-TYPE]    publish the site's files that a file names
#   delete   what the file "gone" names
if [[ ${target%/}/ =~ ^s3://([^/]+)/(([[:alnum:]._=+@~, -]+/)*)$ ]]; then
  bucket=${BASH_REMATCH[1]} prefix=${BASH_REMATCH[2]}
  target=s3://$bucket/$prefix stage=$work/stage
  list() {                      # of an empty bucket, aws says "None"
    aws s3api list-objects-v2 --bucket "$bucket" --prefix "$prefix" --output text \
      --query 'Contents[].[Size,Key]' | sed -n "s|\t$prefix|\t|p" >there
  }
  put() {
    pick "$1" -l && aws s3 cp --recursive --only-show-errors "$stage" "$target" \
      --cache-control "$2" ${3:+--content-type "$3"}
  }
  delete() {                    # 1000 names a request, whose answer may hold errors
    sed 's/[\\"]/\\&/g; s|.*|{"Key": "'"$prefix"'&"}|' gone |
      split -l 1000 --filter 'paste -sd ,' | while IFS= read -r keys; do
      aws s3api delete-objects --bucket "$bucket" --query Errors --output text \
        --delete file:///dev/stdin <<<"{\"Quiet\": true, \"Objects\": [$keys]}" |
        { ! grep -v '^None$'; } || return
    done
  }
elif [[ $target == *://* ]]; then
  die "DEPLOY_TO=$target: neither s3://bucket/prefix nor a folder"
else
  target=$(realpath -m -- "$target") stage=$target/.boop.new
  for ours in "$(realpath -m ~)" "$work" "$repo"; do
    [[ $ours/ != "${target%/}"/* ]] || die "DEPLOY_TO=$target holds $ours"
  done
  [[ $target/ != "$work"/* && ! -e $target/.git ]] ||
    die "DEPLOY_TO=$target is in boop's work folder, or a git checkout"
  list() {
    rm -rf -- "$stage" && mkdir -p -- "$target" &&
      find "$target" ! -type d -printf '%s\t%P\n' >there
  }
  link() {                      # and rename: never half a file
    (cd "$stage" && xargs -d '\n' cp -lf --parents -t "$target" -- <"$work/$1")
  }
  put() {                       # all is copied first, as there may be no room for it
    [[ -e $stage ]] || pick changed || { rm -rf -- "$stage" && return 1; }
    if [[ $swapped ]]; then delete && : >gone || return; fi
    link "$1" || {              # an empty folder is in the way
      (cd "$target" && xargs -d '\n' rmdir -- <"$work/$1" 2>/dev/null)
      link "$1"
    }
  }
  delete() (                    # and the folders that are empty then
    cd "$target" && xargs -d '\n' rm -f -- <"$work/gone" || return
    xargs -rd '\n' dirname -- <"$work/gone" | sort -u |
      xargs -rd '\n' rmdir -p --ignore-fail-on-non-empty -- 2>/dev/null || :
  )
fi

known=$(md5sum <<<"$target ${AWS_ENDPOINT_URL:-}")
known=$work/targets/${known%% *}        # what is known of this target
mkdir -p -- "$known"
cd -- "$work"
chmod 700 .
exec 9>>lock                    # what a killed run left behind, an upload, holds it too
flock -n 9 || { echo 'waiting for an earlier run to end'; flock 9; }
rm -rf -- site src.new batches said.*
try "cannot list $target" list & lister=$!      # while git and hugo work

# --- Fetch ----------------------------------------------------------------------------
want=${BOOP_BRANCH:+refs/heads/}${BOOP_BRANCH:-HEAD}
if [[ ${BOOP_EXACT:-} == 1 ]]; then want=${BOOP_COMMIT:-$want}; fi
export GIT_CEILING_DIRECTORIES=$work    # a damaged src must not lead git to one above
# What "git lfs install" configures:
lfs="command -v git-lfs >/dev/null || echo 'error: this repository uses Git LFS: \
apt install git-lfs' >&2; git-lfs filter-process"
git() {                         # and no cleaning up in the background, to be killed
  command git -c gc.autoDetach=false -c filter.lfs.required=true \
    -c filter.lfs.process="$lfs" "$@"
}
update() (                      # update FOLDER; by &&, for an "if" puts set -e off
  [[ -e $1 ]] || git clone --quiet --no-checkout --no-local --single-branch \
    ${BOOP_BRANCH:+--branch "$BOOP_BRANCH"} "${as_owner[@]}" -- "$repo" "$1" || return
  cd "$1" || return
  local to=FETCH_HEAD           # or a commit that is here: its forge may be down
  if [[ $want != *[!0-9a-f]* ]] && git cat-file -e "$want^{commit}" 2>/dev/null; then
    to=$want
  else                          # with its history, for dates
    git fetch --quiet --update-shallow "${as_owner[@]}" -- origin "$want" || return
  fi
  git reset --quiet --hard "$to" &&
    git clean --quiet -ffdx -e /resources/_gen || return        # hugo's pictures stay
  [[ ! -e .gitmodules ]] || git submodule --quiet update --init --recursive --force
)
if [[ ${DEPLOY_FULL:-} == 1 ]]; then rm -rf src cache; fi
if [[ -e building ]]; then rm -rf src/resources/_gen cache; fi  # hugo was killed
origin=$(git -C src config remote.origin.url 2>/dev/null) || :
if [[ $origin != "$repo" ]] || ! update src; then
  [[ ! -e src ]] || echo 'making a fresh clone'
  try "cannot fetch ${want#refs/heads/}" update src.new
  rm -rf src && mv src.new src
fi
git -C src log -1 --format=$'commit=%H\nmessage=%s\nauthor=%an' >>"$result"
tip=$(git -C src log -1 --format='%h: %s (%an)')
report fetch "${want#refs/heads/} at $tip"

# --- Build ----------------------------------------------------------------------------
has() { [[ $(cd src && ls -d -- "$@" 2>/dev/null) ]]; }
site=src hugo=''                # the repository as it is, without a Hugo configuration
if has hugo.{toml,yaml,yml,json} config/_default ||     # config.json may be anyone's
  { has config.{toml,yaml,yml,json} && has content layouts themes; }; then
  hugo=1
  command -v hugo >/dev/null || die 'this site needs hugo: apt install hugo'
fi
# Symbolic links may lead hugo around, but nobody out of the repository.
find src -name .git -prune -o -type l -print0 | while IFS= read -rd '' link; do
  real=${hugo:+$(realpath -e -- "$link" 2>/dev/null || :)}
  if [[ $real != "$work/src/"* || $real/ == */.git/* ]]; then rm -v -- "$link"; fi
done | sed 's/^/link: /'
if [[ $hugo ]]; then
  site=site
  : >building
  try 'hugo failed' hugo -s src -d "$work/site" --cacheDir "$work/cache"
  rm building
  page=$(grep -rLiEm 1 --include='*.html' 'http-equiv="?refresh' site) || :  # no alias
fi
find "$site" -name .git -prune -o ! -name .gitmodules -type f -printf '%s\t%P\n' >here
bad=$(grep -avxEm 1 $'[0-9]+\t[^[:cntrl:]]+' here | cut -f 2-) || :
[[ ! $bad ]] || die "the name of the file ${bad@Q} is not UTF-8, or not printable"
report build "$(wc -l <here) files"

# --- Compare --------------------------------------------------------------------------
# hugo writes every file anew, so contents decide. What is known of a target: "manifest"
# holds a digest<tab>name for each file that the last success published there; "tried",
# the names that runs which were cut off since have touched: those are in doubt.
names() { cut -f 2- -- "$@" | sort -u; }
count() { wc -l <"$1"; }
touch "$known"/{manifest,tried,repo}
page_cache=${DEPLOY_CACHE_CONTROL:-public, max-age=60}
names here >all
(cd "$site" && xargs -rd '\n' md5sum -z --) <all | tr '\0' '\n' |
  sed "s/  /$(md5sum <<<"$page_cache" | cut -c -8)\t/" >manifest    # a new header, too
wait "$lister"                  # it has said what failed
comm -23 <(names there) <(names "$known/manifest" "$known/tried") >theirs
comm -23 <(names there) all >extra
comm -23 extra theirs >gone
comm -23 <(names "$known/manifest") all >lost
folders() { sed -n ':up s|/[^/]*$||; T; p; b up' -- "$1" | sort -u; }
in_way=$(comm -12 theirs <(folders all) && comm -12 all <(folders theirs))
# Changed is what has another digest, is not there or of another size, or is in doubt.
names <(comm -13 <(sort "$known/manifest") <(sort manifest)) \
  <(comm -13 <(sort there) <(sort here)) \
  <(comm -12 <(names "$known/tried") all) >changed
if [[ ${DEPLOY_FULL:-} == 1 ]]; then cp all changed; fi
# In boop's own folder, another repository's site may take over.
[[ ${DEPLOY_TO:-} || ! -s $known/repo || $(<"$known/repo") == "$repo" ]] || : >lost
lost=$(count lost) published=$(count "$known/manifest")
if [[ ${DEPLOY_FORCE:-} == 1 ]]; then   # what looks like an accident is meant
  cp extra gone
elif ((2 * lost > published)); then
  die "not without DEPLOY_FORCE=1: the site lost $lost of its $published files"
elif [[ ! -s all ]]; then
  die 'not without DEPLOY_FORCE=1: the site is empty'
elif [[ $hugo && ! (-e site/index.html && $page) ]] || grep -qxF index.html lost; then
  die 'not without DEPLOY_FORCE=1: there is no home page, index.html (a theme?)'
elif [[ $in_way && ! ${bucket:-} ]]; then
  die "not without DEPLOY_FORCE=1: ${in_way%%$'\n'*} is not boop's, and in the way"
elif [[ -s theirs ]]; then
  echo "$(count theirs) files here are not boop's: left alone, unless the site has them"
fi

# --- Publish --------------------------------------------------------------------------
swapped=$(comm -12 gone <(folders all) && comm -12 all <(folders gone))
uploaded=$(count changed) deleted=$(count gone)
cat changed <(comm -23 gone theirs) >>"$known/tried"    # a forced run makes none ours
if [[ -s $known/tried || -s gone ]]; then
  # A list of names for each Cache-Control and Content-Type: "batches/2 font|woff2".
  caches=(- 'public, max-age=31536000, immutable' 'public, max-age=600' "$page_cache")
  fingerprint='(\.[0-9a-f]{32,128}\.|_hu_?[0-9a-f]{16})[^/]*$'
  mkdir batches
  while IFS= read -r name; do
    cache=2 type='' ext=${name##*.} ext=${ext,,}
    case $ext in                # a type only where not every aws knows it
      html | htm | xml | json | webmanifest) cache=3 ;;
      txt) cache=3 type='text/plain; charset=utf-8' ;;
      avif | webp) type=image/$ext ;;
      woff | woff2 | ttf | otf) type=font/$ext ;;
    esac
    if [[ $name =~ $fingerprint ]]; then cache=1; fi
    printf '%s\n' "$name" >>"batches/$cache ${type/\//|}"
  done <changed
  for batch in batches/*; do
    cache=${batch:8:1} type=${batch:10}
    try "cannot publish to $target" put "$batch" "${caches[cache]}" "${type/|//}"
  done
  if [[ -s gone ]]; then try "cannot delete in $target" delete; fi
  report publish "$target"
  if [[ ${DEPLOY_CLOUDFRONT:-} ]]; then
    try 'cannot invalidate CloudFront' aws cloudfront create-invalidation --paths '/*' \
      --distribution-id "$DEPLOY_CLOUDFRONT" --query Invalidation.Id --output text
  fi
fi
mv manifest "$known/manifest"
rm -rf -- "$known/tried" "$stage"
printf '%s\n' "$repo" >repo && mv repo "$known/repo"
url=${DEPLOY_URL:-$(hugo config -s src 2>/dev/null |    # example.org: a placeholder
  sed -nE '/example\.(org|com)/d; s#^baseurl *[=:] *.(https?://.*).$#\1#ip')} || :
echo "url=$url" >>"$result"
since=$began report live \
  "${tip%%:*}: $uploaded of $(count all) files uploaded, $deleted deleted"
