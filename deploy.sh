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
#   BOOP_COMMIT           the commit to deploy, if BOOP_EXACT=1 (a rollback); else it is
#                         only news, and the branch's tip is deployed
#   BOOP_STATE            the state folder
#   BOOP_RESULT           a file for lines of name=value, which boop reads when it ends:
#                         commit, message, author, url, and the reason of a failure
#   DEPLOY_TO             s3://bucket[/prefix], or a folder; default $BOOP_STATE/public
#   DEPLOY_URL            the site's address, for boop's record; default: hugo's baseURL
#   DEPLOY_FULL=1         trust nothing remembered: clone, build and upload everything
#   DEPLOY_FORCE=1        publish even a site that is empty, lost its home page or most
#                         of its files, and delete what else is in DEPLOY_TO
#   DEPLOY_CACHE_CONTROL  S3: the pages' Cache-Control; default "public, max-age=60"
#   DEPLOY_CLOUDFRONT     the distribution to invalidate when something changed
#
# The order is the promise: new assets, then pages, deletions last. A visitor never gets
# a page before its stylesheet, and a step that fails leaves the next ones undone. Only
# what was published from here is ever deleted.
#
# Without a Hugo configuration, the repository is the site, as it is: its regular files,
# without .git and .gitmodules. Hugo follows symbolic links, within the repository only.
# shellcheck disable=SC2312
set -euo pipefail
shopt -s nullglob
umask 022                       # the web server reads the result; work itself is 0700
export LC_ALL=C.UTF-8           # names are UTF-8 to every program
export GIT_TERMINAL_PROMPT=0 GIT_SSH_COMMAND=${GIT_SSH_COMMAND:-ssh -o BatchMode=yes}
export AWS_PAGER=''
# Run from a git hook, git would work in the hook's repository instead of ours.
unset GIT_DIR GIT_WORK_TREE GIT_INDEX_FILE GIT_PREFIX GIT_COMMON_DIR GIT_NAMESPACE
unset GIT_OBJECT_DIRECTORY GIT_ALTERNATE_OBJECT_DIRECTORIES GIT_QUARANTINE_PATH CDPATH

plain() { local text=${*//[[:cntrl:]]/ }; printf '%s\n' "${text:0:300}"; }
result() {                      # result NAME VALUE: for boop's record
  if [[ ${BOOP_RESULT:-} && $2 ]]; then plain "$1=$2" >>"$BOOP_RESULT"; fi
}
die() { plain "deploy: $*" >&2; result reason "$*"; exit 1; }
refuse() {                      # what looks like an accident needs an owner's word
  [[ ${DEPLOY_FORCE:-} == 1 ]] || die "$1: not published without DEPLOY_FORCE=1"
}
try() {                         # try WHAT COMMAND...: its own words say why it failed
  "${@:2}" 2>&1 | tee "said.$2" && return
  local status=$? said
  said=$(sed -E '
    /^(remote: *=*)?$|^(Start building|hugo v|Total in|WARN|INFO|hint|[Ww]arning)/d
    s/^.*(failed|templates): ("[^"]+:[0-9]+:[0-9]+": )/\2/
    s/^((remote|fatal|[Ee]rror|ERROR)( building site)?[ 0-9/:]* )+//
    q' "said.$2")
  said=${said//"$work/src/"/}
  die "$1: ${said:-exit status $status}"
}
report() {                      # report fetch "main at 1234abc": with the step's time
  local now=${EPOCHREALTIME/./}
  printf '%-8s%5.1f s  %s\n' "$1" "$((now - since))e-6" "${2//[^[:print:]]/?}"
  since=$now
}
began=${EPOCHREALTIME/./} since=$began

# --- Where ----------------------------------------------------------------------------
if [[ ! ${BOOP_REPO:-} ]]; then die 'BOOP_REPO: which repository to deploy?'; fi
repo=$BOOP_REPO branch=${BOOP_BRANCH:-} exact=''
if [[ ${BOOP_EXACT:-} == 1 ]]; then exact=${BOOP_COMMIT:-}; fi
if [[ $exact == *[!0-9a-f]* ]]; then die 'BOOP_COMMIT is not the name of a commit'; fi
if [[ -d $repo ]]; then repo=$(realpath -- "$repo"); fi
state=$(realpath -m -- "${BOOP_STATE:-${XDG_STATE_HOME:-$HOME/.local/state}/boop}")
work=$state/work target=${DEPLOY_TO:-$state/public}
if [[ $target/ == \~/* ]]; then target=$HOME${target:1}; fi   # no shell has seen it yet

aws() {                         # older versions do not know AWS_ENDPOINT_URL
  local url=${AWS_ENDPOINT_URL:-}
  if [[ $1 != cloudfront ]]; then url=${AWS_ENDPOINT_URL_S3:-$url}; fi
  command aws ${url:+--endpoint-url "$url"} "$@"
}
pick() {                        # pick NAMES FOLDER [-l]: copy or link files of the site
  (cd "$site" && xargs -d '\n' cp --parents "${@:3}" -t "$2" -- <"$work/$1")
}
# A target, be it a bucket or a folder, can do three things:
#   list     "size<tab>name" lines of all that is there, to the file "there"
#   put NAMES CACHE-CONTROL [CONTENT-TYPE]    publish the site's files that a file names
#   delete   what the file "gone" names
case $target in
  s3://[!/]*)
    bucket=${target#s3://} bucket=${bucket%%/*} target=${target%/}
    prefix=${target#"s3://$bucket"} prefix=${prefix#/} prefix=${prefix:+$prefix/}
    list() {                    # but not "None", nor a console's "folder/"
      aws s3api list-objects-v2 --bucket "$bucket" --prefix "$prefix" \
        --query 'Contents[].[Size,Key]' --output text |
        sed -nE "s/^([0-9]+\t).{${#prefix}}(.*[^/])\$/\1\2/p" >there
    }
    new=stage
    put() {
      rm -rf stage && mkdir stage && pick "$1" "$work/stage" -l &&
        aws s3 cp --recursive --only-show-errors stage "$target" \
          --cache-control "$2" ${3:+--content-type "$3"}
    }
    delete() {                  # 1000 names a request; a 200 may hold errors
      local name keys failed
      while IFS= read -r name; do printf '%s\n' "$prefix$name"; done <gone |
        sed 's/[\\"]/\\&/g; s/\t/\\t/g; s/.*/{"Key": "&"}/' |
        split -l 1000 --filter 'paste -sd ,' | while IFS= read -r keys; do
          failed=$(aws s3api delete-objects --bucket "$bucket" \
            --delete file:///dev/stdin --query 'Errors[].[Code,Key]' --output text \
            <<<"{\"Quiet\": true, \"Objects\": [$keys]}") || return
          if [[ $failed != None ]]; then printf '%s\n' "$failed"; return 1; fi
        done
    } ;;
  *://*) die "DEPLOY_TO=$target: neither s3://bucket nor a folder" ;;
  *)
    target=$(realpath -m -- "$target")
    for ours in "${HOME:-/}" "$work" "$repo"; do
      if [[ $ours/ == "${target%/}"/* ]]; then die "DEPLOY_TO=$target holds $ours"; fi
    done
    if [[ $target/ == "$work"/* || -e $target/.git ]]; then
      die "DEPLOY_TO=$target is boop's own work folder, or somebody's git checkout"
    fi
    new=$target/.boop.new
    list() {
      rm -rf -- "$new" && mkdir -p -- "$target" &&
        find "$target" ! -type d -printf '%s\t%P\n' >there
    }
    put() {                     # by links that cp renames: never half a file
      local swapped             # a file takes the place of a folder, or the reverse
      if [[ ! -e $new ]]; then  # all at once, as there may be no room for it
        if ! mkdir -- "$new" || ! pick changed "$new"; then rm -rf -- "$new"; return 1; fi
      fi
      swapped=$(find "$site" "$target" -path "$new" -prune -o -type d -printf '%P\n' |
        sort | comm -12 - <(sort changed gone))
      if [[ $swapped ]]; then delete && : >gone; fi &&
        (cd "$new" && xargs -d '\n' cp -lf --parents -t "$target" -- <"$work/$1")
    }
    delete() (                  # and the folders that they leave empty
      cd "$target" && xargs -d '\n' rm -f -- <"$work/gone" || return
      sed -n 's|/[^/]*$||p' "$work/gone" |
        xargs -d '\n' rmdir -p --ignore-fail-on-non-empty -- 2>/dev/null || :
    ) ;;
esac

mkdir -p -- "$work/manifests"
cd -- "$work"
chmod 700 .
exec 9>>lock                    # what a killed run left behind, an upload, holds it too
flock -n 9 ||
  { echo 'waiting for an earlier run to end'; flock 9; report wait 'it ended'; }
export GIT_CEILING_DIRECTORIES=$work    # a damaged src must not lead git to one above
rm -rf site stage batches said.*
# aws takes half a second to start: meanwhile, git and hugo work.
try "cannot list $target" list & lister=$!

# --- Fetch ----------------------------------------------------------------------------
upload_pack=()
if [[ -d ${repo#file://} ]]; then       # its owner may be another user than ours
  upload_pack=(--upload-pack 'git -c safe.directory=* upload-pack')
fi
lfs="command -v git-lfs >/dev/null || echo 'this repository uses Git LFS: \
apt install git-lfs' >&2; git-lfs filter-process"
git() {                         # with what "git lfs install" configures
  command git -c gc.autoDetach=false -c filter.lfs.process="$lfs" \
    -c filter.lfs.required=true "$@"
}
fetch() {
  git fetch --quiet --force --no-tags --update-shallow --no-recurse-submodules \
    "${upload_pack[@]}" origin "$1"
}
update() (                      # update FOLDER; by &&, for its callers disable set -e
  cd "$1" && fetch "+${branch:+refs/heads/}${branch:-HEAD}:refs/boop/tip" &&
    if [[ $exact ]]; then       # which may have been pushed over
      git cat-file -e "$exact^{commit}" 2>/dev/null || fetch "$exact"
    fi &&
    git reset --quiet --hard "${exact:-refs/boop/tip}" &&
    git clean --quiet -ffdx -e /resources/_gen &&       # hugo's pictures stay
    if [[ -e .gitmodules ]]; then
      git submodule --quiet sync --recursive &&
        git submodule --quiet update --init --recursive --force
    fi
)
clone() {                       # with its history, which enableGitInfo wants
  rm -rf src.new &&
    git clone --quiet --no-checkout --no-local --no-tags --single-branch \
      ${branch:+--branch "$branch"} "${upload_pack[@]}" -- "$repo" src.new &&
    update src.new && rm -rf src && mv src.new src
}
if [[ ${DEPLOY_FULL:-} == 1 ]]; then rm -rf src cache; fi
if [[ -e building ]]; then rm -rf src/resources/_gen cache; fi  # hugo was killed
origin=$(git -C src config remote.origin.url 2>/dev/null) || :
if [[ $origin != "$repo" ]] || ! update src; then
  if [[ -e src ]]; then echo 'the last clone is of no use here: cloning afresh'; fi
  try "cannot fetch ${exact:-${branch:-the default branch}}" clone
fi
mapfile -t tip < <(git -C src log -1 --format=%h%n%H%n%s%n%an)
result commit "${tip[1]}"
result message "${tip[2]}"
result author "${tip[3]}"
report fetch "${branch:-HEAD} at ${tip[0]}: ${tip[2]} (${tip[3]})"

# --- Build ----------------------------------------------------------------------------
has() { [[ $(cd src && ls -d -- "$@" 2>/dev/null) ]]; }
hugo='' site=src                # with a config.json alone, it may be anyone's
if has hugo.{toml,yaml,yml,json} config/_default ||
  { has config.{toml,yaml,yml,json} && has content layouts themes; }; then
  hugo=1 site=site
fi
find src -name .git -prune -o ! -type f ! -type d -print0 |
  while IFS= read -rd '' odd; do
    real=${hugo:+$(realpath -e -- "$odd" 2>/dev/null || :)}
    if [[ $real == "$work/src/"* && ${real#"$work"}/ != */.git/* ]]; then continue; fi
    printf 'left out: %q is no regular file of the repository\n' "${odd#src/}"
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
find "$site" -name .git -prune -o -type f ! -path src/.gitmodules \
  -printf '%s\t%P\n' >here
# A tab is harmless; what else is no text would break a list of names, or S3's own.
bad=$(grep -avxEm 1 $'[0-9]+\t([^[:cntrl:]]|\t)+' here | cut -f 2-) || :
[[ ! $bad ]] || die "the name of the file ${bad@Q} is not UTF-8, or holds a line break"
files=$(wc -l <here)
if [[ $files == 0 ]]; then refuse 'the site is empty'; fi
report build "$files files${pages:+, $pages pages}"

# --- Compare --------------------------------------------------------------------------
# hugo writes every file anew, so contents decide. A target's manifest has a line of
# digest<tab>name for each file that was published there from here; the file "tried"
# beside it, those of runs that were cut off since: what is there of them is in doubt.
page_cache=${DEPLOY_CACHE_CONTROL:-public, max-age=60}
headers=$(md5sum <<<"$page_cache" | cut -c-8)
cut -f 2- here | (cd "$site" && xargs -d '\n' -r md5sum -z --) | tr '\0' '\n' |
  sed -E "s/^(.{32})  /$headers\1\t/" >manifest
last=manifests/$(md5sum <<<"$target ${AWS_ENDPOINT_URL:-}" | cut -c-32)
touch "$last" "$last.tried"
cp "$last.tried" tried
if [[ ${DEPLOY_FULL:-} == 1 ]]; then sed 's/^/-/' "$last" >>tried; fi
wait "$lister"                  # it has said what failed
truncate -s 0 changed lost gone others in_way
LC_ALL=C awk -F '\t' '
  { name = substr($0, length($1) + 2) }
  list == "last"  { last[$0]; published[name]; ours[name] }
  list == "tried" { if (!($0 in last)) doubted[name]; ours[name] }
  list == "there" { there[$0]; standing[name] }
  list == "here"  { if (!($0 in there)) changed[name]; site[name] }
  list == "new"   { if (!($0 in last) || name in doubted) changed[name] }
  function folders(name, of) { while (sub("/[^/]*$", "", name)) of[name] }
  END {
    for (name in changed) print name >"changed"
    for (name in published) if (!(name in site)) print name >"lost"
    for (name in site) folders(name, in_site)
    for (name in standing)
      if (name in ours) { if (!(name in site)) print name >"gone" }
      else if (name in site) taken += name in changed
      else {
        print name >"others"
        if (name in in_site) print name >"in_way"
        delete above
        folders(name, above)
        for (folder in above) if (folder in site) print name >"in_way"
      }
    if (taken) print taken " files here were not boop\47s: the site has them now, too"
  }' list=last "$last" list=tried tried list=there there list=here here \
  list=new manifest
if [[ ${DEPLOY_FORCE:-} == 1 ]]; then
  cat others >>gone
elif [[ -s others ]]; then
  theirs=$(wc -l <others)
  echo "$theirs files here are not boop's: left alone; DEPLOY_FORCE=1 deletes them"
fi
if [[ -s in_way && ! ${bucket:-} ]]; then refuse "$(head -n 1 in_way) is in the site's way"; fi
# The default folder is boop's own: there, another repository's site may take over.
if [[ ! ${DEPLOY_TO:-} && -e manifests/repo && $(<manifests/repo) != "$repo" ]]; then
  truncate -s 0 lost
fi
uploaded=$(wc -l <changed) deleted=$(wc -l <gone) unchanged=$((files - uploaded))
report compare "$uploaded to upload, $deleted to delete, $unchanged unchanged"
lost=$(wc -l <lost) published=$(wc -l <"$last")
((2 * lost <= published)) || refuse "the site lost $lost of its $published files"
if grep -qxF index.html lost; then refuse 'the site lost its home page, index.html'; fi

# --- Publish --------------------------------------------------------------------------
if [[ -s changed || -s gone || -s tried ]]; then
  sort -u tried manifest >tried.new
  mv tried.new "$last.tried"
  # A list of names for each Cache-Control and Content-Type: "batches/1:font:woff2".
  caches=('public, max-age=31536000, immutable' 'public, max-age=600' "$page_cache")
  fingerprint='(\.[0-9a-f]{32,128}\.|_hu_?[0-9a-f]{16})[^/]*$'
  mkdir batches
  while IFS= read -r name; do
    cache=1 type='' ext=${name##*.} ext=${ext,,}
    case $ext in                # a type only where not every aws knows it
      html | htm | xhtml | xml | json | webmanifest) cache=2 ;;
      txt) cache=2 type='text/plain; charset=utf-8' ;;
      md) cache=2 type='text/markdown; charset=utf-8' ;;
      avif | webp) type=image/$ext ;;
      woff | woff2 | ttf | otf) type=font/$ext ;;
      map) type=application/json ;;
      *) ;;
    esac
    if [[ $name =~ $fingerprint ]]; then cache=0; fi
    printf '%s\n' "$name" >>"batches/$cache:${type/\//:}"
  done <changed
  for batch in batches/*; do
    cache=${batch:8:1} type=${batch:10}
    try "cannot publish to $target" put "$batch" "${caches[cache]}" "${type/:/\/}"
  done
  rm -rf -- "$new"
  if [[ -s gone ]]; then try "cannot delete in $target" delete; fi
  report publish "$target"
  if [[ ${DEPLOY_CLOUDFRONT:-} ]]; then
    try "cannot invalidate CloudFront's $DEPLOY_CLOUDFRONT" \
      aws cloudfront create-invalidation --distribution-id "$DEPLOY_CLOUDFRONT" \
      --paths '/*' --query Invalidation.Id --output text
    report purge "CloudFront $DEPLOY_CLOUDFRONT"
  fi
fi
mv manifest "$last"
rm "$last.tried"
if [[ ! ${DEPLOY_TO:-} ]]; then printf '%s\n' "$repo" >manifests/repo; fi
if [[ $hugo && ! ${DEPLOY_URL:-} ]]; then       # example.org: a placeholder
  DEPLOY_URL=$(hugo config --source src 2>/dev/null |
    sed -nE '/example\.(org|com)/d; s#^baseurl *= *.(https?://.*).$#\1#ip') || :
fi
result url "${DEPLOY_URL:-}"
since=$began
report live "${tip[0]}: $uploaded uploaded, $deleted deleted, $unchanged unchanged"
